"""Large code of attempts: shared below, private above; whatever a job does to it, no other sees it."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from danlu.blobs.local import LocalBlobs
from danlu.domain.trees import Entry, address_of, encode, totals
from danlu.errors import ExecutorUnavailable, LaunchRejected
from danlu.executors.base import Phase
from danlu.executors.local import launcher
from danlu.runner import mounts
from tests.conftest import cannot_run
from tests.executors import LocalBench
from tests.process.test_local_executor import opened

ROOT = os.geteuid() == 0
COUNT = 300
PR_SET_DUMPABLE = 4
BIG = b"big" * 3_000_000


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[LocalBench]:
    home = tmp_path / "a:home,with commas"
    home.mkdir()
    bench = LocalBench(opened(home))
    yield bench
    bench.close()


def store(bench: LocalBench, *, project: str = "default") -> str:
    """Stores code that is too large to be copied."""
    blobs = LocalBlobs(bench.home / "blobs")
    texts = {f"f{n}": b"%d" % n for n in range(COUNT)}
    inner = encode([Entry(name, "file", address_of(data), 0o644, len(data)) for name, data in texts.items()])
    size, files = totals([Entry(name, "file", address_of(data), 0o644, len(data)) for name, data in texts.items()])
    outer = encode([
        Entry("lib", "dir", address_of(inner), size=size, files=files),
        Entry("big.bin", "file", address_of(BIG), 0o644, len(BIG)),
        Entry("run.sh", "file", address_of(b"echo ran\n"), 0o755, 9),
        Entry("first", "link", target="lib/f0"),
    ])  # fmt: skip
    found = [*texts.values(), BIG, b"echo ran\n", inner, outer]
    blobs.put_many(project, [(address_of(data), data) for data in found])
    return address_of(outer)


def shell(bench: LocalBench, line: str, code: str) -> str:
    return bench.launch("sh", "-c", line, code=code)


def writes(bench: LocalBench) -> Path:
    return bench.home / "cache" / "code" / "writes"


def mounted(bench: LocalBench, tree: str) -> None:
    """Requires that overlays can be mounted here."""
    attempt = shell(bench, "grep -c ' overlay overlay ' /proc/self/mountinfo; df -T .", tree)
    bench.end(attempt)
    said = bench.log(attempt)
    bench.executor.forget(attempt)
    if "overlay" not in said:
        cannot_run("overlays cannot be mounted")


def test_what_an_attempt_writes_no_other_sees(bench: LocalBench) -> None:
    tree = store(bench)
    mounted(bench, tree)
    first = shell(
        bench,
        "./run.sh; cat first; echo changed >> lib/f0; rm lib/f1; rm -r lib/f2; mv lib renamed; chmod 600 big.bin;"
        " echo x >> big.bin; echo new > new; echo ready; read never < /dev/tty; sleep 600", tree,
    )  # fmt: skip
    bench.printed(first, "ready")
    second = shell(bench, "ls; cat lib/f0 lib/f1; wc -c < big.bin; touch big.bin && echo mine", tree)
    seen = bench.end(second)
    assert [task.exit_code for task in seen.tasks] == [0], bench.log(second)
    assert bench.log(second).split() == ["big.bin", "first", "lib", "run.sh", f"01{len(BIG)}", "mine"]
    assert bench.log(first).split()[0] == "ran"
    # what lies below is as it was
    (below,) = (bench.home / "cache" / "code" / "projects" / "default" / "trees").iterdir()
    assert (below / "lib" / "f0").read_bytes() == b"0"
    assert (below / "big.bin").stat().st_size == len(BIG)
    bench.executor.stop(first, grace_s=0)
    assert bench.end(first).phase is Phase.ENDED
    for attempt in (first, second):
        bench.executor.forget(attempt)
        assert not (bench.home / "attempts" / attempt).exists()
    assert list(writes(bench).iterdir()) == []
    assert list((bench.home / "cache" / "code" / "uses").iterdir()) == []


def test_a_job_cannot_pass_to_what_is_shared(bench: LocalBench) -> None:
    if not ROOT:
        cannot_run("only root gives jobs users of their own")
    tree = store(bench)
    mounted(bench, tree)
    attempt = shell(
        bench, f"ls {str(bench.home / 'cache' / 'code')!r}; ls {str(writes(bench))!r}; umount .; true", tree
    )
    bench.end(attempt)
    assert bench.log(attempt).count("Permission denied") + bench.log(attempt).count("No such file") == 2
    folder = bench.home / "attempts" / attempt
    assert writes(bench).stat().st_uid == (writes(bench) / attempt).stat().st_uid == 0
    assert (writes(bench) / attempt / "inner").stat().st_uid == 0
    assert (writes(bench) / attempt / "upper").stat().st_uid == folder.stat().st_uid != 0
    assert (
        "overlay" not in Path("/proc/self/mountinfo").read_text().replace("/overlay", "").split(str(folder))[-1:][0][:0]
    )
    assert str(folder) not in Path("/proc/self/mountinfo").read_text()  # it is mounted for the attempt alone


def foreign(home: Path) -> Path:
    """Makes a folder of somebody else's as the kernel would empty it."""
    folder = home / "foreign"
    (folder / "work").mkdir(parents=True)
    (folder / "work" / "precious").write_text("kept")
    return folder


def test_links_in_the_folder_of_an_attempt_lead_nowhere(bench: LocalBench) -> None:
    """Another attempt of the project may put them there, between the folder and the mount."""
    tree = store(bench)
    mounted(bench, tree)
    elsewhere = foreign(bench.home)
    order = bench.order("sh", "-c", "cat lib/f7; echo new > new", code=tree)
    folder = bench.home / "attempts" / order.attempt.id
    bench.executor._prepare(order, folder)
    if (folder / "layer").exists():  # it is as good as the job's: only its parent's owner matters
        (folder / "layer").rename(folder / "aside")
    (folder / "layer").mkdir()
    (folder / "layer" / "inner").symlink_to(elsewhere)
    (folder / "layer" / "upper").symlink_to(foreign(bench.home / "other"))
    bench.executor.launch(order)
    bench.end(order.attempt.id)
    assert bench.log(order.attempt.id) == "7"
    assert [path.name for path in elsewhere.iterdir()] == ["work"]
    assert (elsewhere / "work" / "precious").read_text() == "kept"


def test_nothing_is_mounted_where_a_link_in_place_of_the_working_folder_leads(bench: LocalBench) -> None:
    tree = store(bench)
    mounted(bench, tree)
    order = bench.order("sh", "-c", "true", code=tree)
    folder = bench.home / "attempts" / order.attempt.id
    bench.executor._prepare(order, folder)
    (folder / "work").rmdir()
    (folder / "work").symlink_to(foreign(bench.home))
    with pytest.raises(LaunchRejected, match="no folder of the attempt any more"):
        bench.executor.launch(order)
    assert not (writes(bench) / order.attempt.id).exists()
    assert bench.executor._layers._mounts()  # and others' code is mounted still


def test_a_server_that_was_killed_goes_on_with_it(bench: LocalBench) -> None:
    tree = store(bench)
    mounted(bench, tree)
    attempt = shell(bench, "echo ready; sleep 600", tree)
    bench.printed(attempt, "ready")
    bench.again()
    assert (bench.home / "cache" / "code" / "uses" / attempt).is_symlink()
    bench.executor.stop(attempt, grace_s=0)
    bench.end(attempt)
    bench.executor.forget(attempt)
    (writes(bench) / "a-job-that-is-gone" / "upper").mkdir(parents=True)
    bench.again()
    assert list(writes(bench).iterdir()) == []
    assert list((bench.home / "cache" / "code" / "uses").iterdir()) == []


def test_a_mount_that_fails_falls_back_to_a_copy(bench: LocalBench) -> None:
    tree = store(bench)
    mounted(bench, tree)
    order = bench.order("sh", "-c", "cat lib/f7; stat -f -c %T .", code=tree)
    target = bench.home / "cache" / "code" / "projects" / "default" / "trees" / tree[7:]
    target.rename(target.with_name("aside"))
    target.write_text("not a folder, so it cannot lie below")
    with pytest.raises(ExecutorUnavailable):
        bench.executor.launch(order)
    bench.executor._layers.refused()
    bench.executor.launch(order)
    bench.end(order.attempt.id)
    assert bench.log(order.attempt.id).startswith("7")
    assert "overlay" not in bench.log(order.attempt.id)


def test_who_is_not_root_has_it_too(tmp_path: Path) -> None:
    """The mount is made in a user namespace then, in which the user stays who they are."""
    paths = {name: str(tmp_path / name) for name in ("lower", "upper", "inner", "target")}
    for path in paths.values():
        Path(path).mkdir()
    (tmp_path / "lower" / "a").write_text("below")
    if ROOT:
        for path in (tmp_path, *tmp_path.rglob("*")):
            os.chown(path, 12345, 12345)
    opened(tmp_path)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if ROOT:
                launcher.drop(12345, 12345)
                ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # as a program that a user starts is
            mounts.own()
            mounts.lay_over(paths)
            with open(tmp_path / "target" / "a", "a") as file:
                file.write(" and above")
            said = subprocess.run(["id", "-u"], capture_output=True, text=True, check=True).stdout
            os.write(writing, f"{Path(paths['target'], 'a').read_text()}|{said.strip()}".encode())
        except BaseException as error:  # noqa: BLE001 - told by the parent
            os.write(writing, f"{error}".encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with open(reading, "rb") as file:
        said = file.read().decode()
    if "cannot be mounted" in said:
        cannot_run(f"this machine has no user namespaces: {said}")
    assert said == f"below and above|{12345 if ROOT else os.geteuid()}"
    assert (tmp_path / "lower" / "a").read_text() == "below"
    assert (tmp_path / "upper" / "a").read_text() == "below and above"
