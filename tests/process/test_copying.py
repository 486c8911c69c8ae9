"""Files from and to real jobs, and jobs that lie about who answers in them."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

import pytest

from danlu.client.sessions import opened
from danlu.domain.jobs import Job, JobState
from danlu.domain.sessions import SessionRequest
from danlu.errors import DanluError
from tests.factories import write_files
from tests.process.inside import danlu, running
from tests.process.platform import Server, until

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="jobs have users of their own only where the server is root")


# files


def test_trees_go_both_ways(shared: Server, job: Job, tmp_path: Path) -> None:
    tree = {"a.txt": "alpha", "sub/b": os.urandom(3_000_000), "sub/deep/ünï": "x", "sub/empty": ""}
    write_files(tmp_path / "tree", tree)
    done = danlu(shared, "cp", "tree", "target:box/", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"4 files, 2.9 MiB" in done.stderr
    uid = Path(shared.home, "attempts", f"{job.id}-1", "work").stat().st_uid
    for path in Path(shared.home, "attempts", f"{job.id}-1", "work", "box").rglob("*"):
        assert path.stat().st_uid == uid
    danlu(shared, "exec", "target", "--", "ln", "-s", "/etc/shadow", "box/tree/link")
    done = danlu(shared, "cp", "job/target:box/tree", ".", cwd=write_files(tmp_path / "back", {}))
    assert (done.returncode, b"left out: link: a link" in done.stderr) == (0, True), done.stderr
    found = {
        str(p.relative_to(tmp_path / "back/tree")): p.read_bytes()
        for p in (tmp_path / "back/tree").rglob("*")
        if p.is_file()
    }
    assert found == {name: data.encode() if isinstance(data, str) else data for name, data in tree.items()}
    assert danlu(shared, "cp", "target:box/tree/a.txt", "one", cwd=tmp_path).returncode == 0
    assert (tmp_path / "one").read_text() == "alpha"
    danlu(shared, "cp", "target:box/tree/", "content", cwd=tmp_path)
    assert sorted(path.name for path in (tmp_path / "content").iterdir()) == ["a.txt", "sub"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["target:nothing", "."], 1, b"nothing: No such file"),
        (["nothing", "target:"], 2, b"nothing does not exist here"),
        (["a", "b"], 2, b"neither names a job"),
        (["target:a", "target:b"], 2, b"both name a job"),
        ([":a", "b"], 2, b"names no job"),
        (["/etc/hostname", "target:/etc/"], 1, b"Permission denied" if os.geteuid() == 0 else b"/etc"),
    ],
)
def test_what_cannot_be_copied_is_told(
    shared: Server, job: Job, words: list[str], code: int, said: bytes, tmp_path: Path
) -> None:
    done = danlu(shared, "cp", *words, cwd=tmp_path)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr


# a job that lies

LIAR = """
import json, os, socket, struct
def frame(kind, data): return struct.pack("!I", len(data) + 1) + kind + data
def record(kind, **fields): return frame(kind, json.dumps(fields).encode())
folder = os.path.dirname(os.environ["HOME"])
os.unlink(folder + "/session")
os.chdir(folder)
door = socket.socket(socket.AF_UNIX)
door.bind("session")
door.listen()
open("work/ready", "w").close()
while True:
    client, _ = door.accept()
    client.recv(65536)
    evil = record(b"t", folder=True, files=1, size_bytes=9)
    evil += record(b"f", path="../../evil", mode=0o755, size=4, mtime_ns=0) + frame(b"b", b"evil") + frame(b"e", b"")
    flood = [frame(b"o", b"x" * 65536)] * 64
    try:
        client.sendall(frame(b"s", b"{}") + frame(b"o", evil))
        for piece in flood: client.sendall(piece)
    except OSError: pass
    client.close()
"""


def test_a_job_that_plays_its_runner_gets_nothing_and_writes_nowhere(server: Server, tmp_path: Path) -> None:
    job = running(server, "python", "-c", LIAR, name="liar")
    work = server.home / "attempts" / f"{job.id}-1" / "work"
    until((work / "ready").exists, 20, "it lies")
    here = write_files(tmp_path / "deep" / "deeper", {})
    done = danlu(server, "cp", "liar:out", "target", cwd=here)
    assert (done.returncode, b"what arrives is not what is sent" in done.stderr) == (1, True), done.stderr
    assert list(tmp_path.rglob("evil")) == []
    done = danlu(server, "exec", "liar", "--", "true")
    assert done.returncode == 3
    assert b"is not its runner" in done.stderr or b"the session broke off" in done.stderr
    assert danlu(server, "status").returncode == 0


@AS_ROOT
@pytest.mark.parametrize("trick", ["link", "file", "folder", "gone", "foreign"])
def test_what_stands_in_the_doors_place_is_not_entered(server: Server, trick: str, tmp_path: Path) -> None:
    job = running(server, "sleep", "1000", name="target")
    folder = server.home / "attempts" / f"{job.id}-1"
    door, owner = folder / "session", folder.stat().st_uid
    door.unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        if trick in ("link", "foreign"):
            place = folder.parent / "s" if trick == "link" else door
            descriptor = os.open(place.parent, os.O_PATH)
            listening.bind(f"/proc/self/fd/{descriptor}/{place.name}")
            os.close(descriptor)
            listening.listen(1)
        if trick == "link":
            door.symlink_to(folder.parent / "s")
        elif trick == "file":
            door.touch()
        elif trick == "folder":
            door.mkdir()
        if trick != "gone":
            os.chown(door, owner, owner, follow_symlinks=False)
        request = SessionRequest(command=("true",))
        with server.client() as client, pytest.raises(DanluError) as caught, opened(client, job.id, request) as session:
            session.run(lambda *_: None)
        if trick in ("link", "foreign"):  # the request, which names the command, was not told to a stranger
            listening.settimeout(0.2)
            with contextlib.suppress(OSError):
                other, _ = listening.accept()
                with other:
                    assert other.recv(100) == b""
    assert "door" in str(caught.value)
    assert server.job(job.id).state is JobState.RUNNING
