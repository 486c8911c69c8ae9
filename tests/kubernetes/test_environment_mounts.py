"""What a job sees of the environments of its node, in a real pod: what the kubelet makes of the manifest."""

from __future__ import annotations

import shutil

from danlu.domain.environments import MOUNTED, Archive, PodEnvironment
from danlu.domain.trees import address_of
from danlu.executors.kubernetes import manifests, zipapp
from tests.kubernetes.conftest import Namespace, job
from tests.unit.test_manifests import SETTINGS, order

OWN, OTHER = "d" * 64, "e" * 64
FILLS = (
    "import sys\n"
    "sys.path.insert(0, '/danlu/runner/runner.pyz')\n"
    "from danlu.runner import environments_cache as cache\n"
    "for digest in sys.argv[3:]:\n"
    "    cache.ensure(sys.argv[1], digest, sys.argv[2], lambda folder: {'unpacked_bytes': 1}, lambda: None)\n"
)
LOOKS = (
    "import os, sys\n"
    "sys.path.insert(0, '/danlu/runner/runner.pyz')\n"
    "from danlu.runner import environments_cache as cache\n"
    "print(sorted(os.listdir(sys.argv[1])))\n"
    "cache.hold(sys.argv[1], sys.argv[2], f'{sys.argv[1]}/{cache.HELD}')\n"
    "for path in (sys.argv[2] + '/new', cache.HELD):\n"
    "    try:\n"
    "        open(f'{sys.argv[1]}/{path}', 'w')\n"
    "    except OSError as error:\n"
    "        print(error.strerror)\n"
)


def test_a_job_has_its_own_environment_and_sees_no_other(namespace: Namespace) -> None:
    archive = Archive(address=address_of(b"x"), size_bytes=1, unpacked_bytes=2, files=3)
    own = PodEnvironment(name="own", digest=OWN, archive=archive)
    (made,) = manifests.rest(
        order().model_copy(update={"environment": own, "interpreter": own.interpreter}), SETTINGS,
        manifests.PodTemplate(), owner_uid="",
    )  # fmt: skip
    spec = made["spec"]["template"]["spec"]
    (first,), (task,) = spec["initContainers"], spec["containers"]
    mounts = [
        [one for one in container["volumeMounts"] if one["name"] in (manifests.ENVIRONMENTS, "danlu-runner")]
        for container in (first, task)
    ]
    runner = manifests.config_map(SETTINGS, zipapp.build())
    runner["metadata"]["namespace"] = namespace.name
    namespace.apply(runner)
    asked = job("own", "python3", "-c", LOOKS, MOUNTED, OWN, container={"volumeMounts": mounts[1]})
    pod = asked["spec"]["template"]["spec"]
    words = ["python3", "-c", FILLS, MOUNTED, first["command"][-1], OWN, OTHER]
    fills = {"name": "first", "image": pod["containers"][0]["image"], "command": words,
             "securityContext": first["securityContext"], "volumeMounts": mounts[0]}  # fmt: skip
    pod |= {"initContainers": [fills], "securityContext": spec["securityContext"], "volumes": [
        {"name": manifests.ENVIRONMENTS, "hostPath": {"path": f"/tmp/{namespace.name}", "type": "DirectoryOrCreate"}},
        {"name": "danlu-runner", "configMap": {"name": SETTINGS.runner}},
    ]}  # fmt: skip
    namespace.apply(asked)
    namespace.job_ends("own", "Complete")
    shutil.rmtree(f"/tmp/{namespace.name}", ignore_errors=True)
    (seen,) = namespace.pods("own")
    assert namespace.log(seen).splitlines() == [f"['.held', '{OWN}']", *["Read-only file system"] * 2]
