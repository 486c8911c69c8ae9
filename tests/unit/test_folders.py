"""Folders: what becomes a tree, what is left out, what is refused; and back again."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.blobs.folders import MAX_HOLE_BYTES, Cache, Scan, checkout, scan
from danlu.blobs.local import LocalBlobs
from danlu.domain.trees import MAX_DEPTH, address_of, walk
from danlu.errors import InvalidSpec
from tests.factories import NOW, SECOND, write_files

LATER = 4_000_000_000 * SECOND
"""Long after anything in these tests was written."""


class Memory:
    """Blobs in memory, as a reader for checkout."""

    def __init__(self, blobs: dict[str, bytes]) -> None:
        self.blobs = blobs

    def open(self, address: str) -> BinaryIO:
        return io.BytesIO(self.blobs[address])


def blobs_of(found: Scan) -> Memory:
    return Memory({**found.nodes, **{address: Path(path).read_bytes() for address, (path, _) in found.files.items()}})


def names(found: Scan) -> list[str]:
    """Returns the paths of all files and links of a scan."""
    return sorted(
        "/".join((*path, entry.name))
        for path, entries in walk(found.root, found.nodes.__getitem__)
        for entry in entries
        if entry.kind != "dir"
    )


def code(root: Path, **options: Any) -> Scan:
    return scan(root, code=True, now=NOW, **options)


def outputs(root: Path) -> Scan:
    return scan(root, code=False, now=NOW)


# there and back

file_names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 60
)
layouts = st.recursive(
    st.binary(max_size=30), lambda inner: st.dictionaries(file_names, inner, max_size=4), max_leaves=12
).filter(lambda found: isinstance(found, dict))


def lay_out(root: Path, layout: dict[str, Any]) -> None:
    root.mkdir()
    for name, inner in layout.items():
        if isinstance(inner, dict):
            lay_out(root / name, inner)
        else:
            (root / name).write_bytes(inner)


def read_back(root: Path) -> dict[str, Any]:
    return {path.name: read_back(path) if path.is_dir() else path.read_bytes() for path in root.iterdir()}


@settings(max_examples=50)
@given(layouts)
def test_what_a_job_left_comes_back_as_it_was(layout: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "a"
        lay_out(root, layout)
        found = outputs(root)
        assert found.skipped == []
        files, size = checkout(blobs_of(found), found.root, Path(folder) / "b")
        assert read_back(Path(folder) / "b") == layout
        assert (files, size) == (found.count, found.size_bytes)
        assert outputs(Path(folder) / "b").root == found.root


def test_modes_and_links_come_back(tmp_path: Path) -> None:
    root = write_files(tmp_path / "a", {"run.sh": "x", "lib/data": "y"})
    (root / "run.sh").chmod(0o700)
    (root / "lib/data").chmod(0o4640)
    (root / "lib/up").symlink_to("../run.sh")
    (root / "here").symlink_to("lib")
    (root / "broken").symlink_to("nowhere")
    found = code(root)
    checkout(blobs_of(found), found.root, tmp_path / "b")
    assert (tmp_path / "b/run.sh").stat().st_mode & 0o7777 == 0o755
    assert (tmp_path / "b/lib/data").stat().st_mode & 0o7777 == 0o644
    links = {name: str((tmp_path / "b" / name).readlink()) for name in ("lib/up", "here", "broken")}
    assert links == {"lib/up": "../run.sh", "here": "lib", "broken": "nowhere"}
    assert found.count == 2


def test_an_empty_folder_is_a_tree(tmp_path: Path) -> None:
    write_files(tmp_path / "a", {})
    found = code(tmp_path / "a")
    assert (found.count, found.size_bytes, names(found)) == (0, 0, [])
    assert checkout(blobs_of(found), found.root, tmp_path / "b") == (0, 0)


def test_the_same_bytes_are_sent_once(tmp_path: Path) -> None:
    found = code(write_files(tmp_path, {"a/x": "same", "b/x": "same", "c": "same"}))
    assert list(found.files) == [address_of(b"same")]
    assert len(found.nodes) == 2
    assert (found.count, found.size_bytes) == (3, 12)


def test_a_wide_folder(tmp_path: Path) -> None:
    for number in range(2000):
        (tmp_path / f"{number:04d}").write_bytes(b"")
    done: list[tuple[int, int]] = []
    found = code(tmp_path, progress=lambda files, size: done.append((files, size)))
    assert found.count == 2000
    assert done[-1][0] > 1900


def deep(root: Path, levels: int) -> Path:
    path = root.joinpath(*["d"] * levels)
    path.mkdir(parents=True)
    (path / "f").write_text("x")
    return path


def test_a_folder_as_deep_as_a_tree_can_be(tmp_path: Path) -> None:
    deep(tmp_path / "a", MAX_DEPTH)
    found = code(tmp_path / "a")
    assert found.count == 1
    assert checkout(blobs_of(found), found.root, tmp_path / "b") == (1, 1)


def test_a_folder_deeper_than_a_tree(tmp_path: Path) -> None:
    deep(tmp_path, MAX_DEPTH + 1)
    (tmp_path / "kept").write_text("x")
    with pytest.raises(InvalidSpec, match="64 folders deep"):
        code(tmp_path)
    found = outputs(tmp_path)
    assert names(found) == ["kept"], "what is left is a tree that can be read"
    assert len(found.skipped) == 1


# what a user's code leaves out


@pytest.mark.parametrize(
    ("ignore", "kept"),
    [
        ("", ["a.log", "a.py", "data/b.log", "data/c.bin", "sub/data/d"]),
        ("*.log", ["a.py", "data/c.bin", "sub/data/d"]),
        ("/*.log", ["a.py", "data/b.log", "data/c.bin", "sub/data/d"]),
        ("data/", ["a.log", "a.py"]),
        ("/data", ["a.log", "a.py", "sub/data/d"]),
        ("*\n!*.py", ["a.py"]),
        ("*.log\n!b.log", ["a.py", "data/b.log", "data/c.bin", "sub/data/d"]),
        ("data/\n!data/b.log", ["a.log", "a.py"]),
        ("**/d", ["a.log", "a.py", "data/b.log", "data/c.bin"]),
        ("# a.py\r\n\r\n*.log\r\n", ["a.py", "data/c.bin", "sub/data/d"]),
        ("\ufeff*.log", ["a.py", "data/c.bin", "sub/data/d"]),
        (r"\!x", ["a.log", "a.py", "data/b.log", "data/c.bin", "sub/data/d"]),
    ],
)
@pytest.mark.parametrize("name", [".gitignore", ".danluignore"])
def test_ignore_files_are_honoured(tmp_path: Path, name: str, ignore: str, kept: list[str]) -> None:
    files = {"a.py": "", "a.log": "", "data/b.log": "", "data/c.bin": "", "sub/data/d": ""}
    found = code(write_files(tmp_path, {**files, name: ignore}))
    assert [path for path in names(found) if path != name] == kept


def test_the_nearest_ignore_file_decides_and_danlus_own_is_last(tmp_path: Path) -> None:
    root = write_files(tmp_path, {
        ".gitignore": "*.bin\n*.txt", ".danluignore": "!keep.bin\nsecret", "keep.bin": "", "drop.bin": "", "secret": "",
        "sub/.gitignore": "!*.txt\n/only-here", "sub/a.txt": "", "sub/only-here": "", "sub/deep/only-here": "", "a.txt": "",
    })  # fmt: skip
    assert [name for name in names(code(root)) if "ignore" not in name] == [
        "keep.bin",
        "sub/a.txt",
        "sub/deep/only-here",
    ]


def test_ignore_files_mean_nothing_for_what_a_job_left(tmp_path: Path) -> None:
    root = write_files(tmp_path, {".gitignore": "*", "model.pt": "x", "__pycache__/a.pyc": "x", ".git/config": "x"})
    assert names(outputs(root)) == [".git/config", ".gitignore", "__pycache__/a.pyc", "model.pt"]


def test_what_is_never_code_is_left_out(tmp_path: Path) -> None:
    root = write_files(tmp_path, {
        "a.py": "", "__pycache__/a.cpython-311.pyc": "", "b.pyc": "", ".DS_Store": "",
        ".git/config": "", "sub/.git": "gitdir: x",
        "env/pyvenv.cfg": "", "env/bin/python": "",
    })  # fmt: skip
    assert names(code(root)) == ["a.py"]


@pytest.mark.parametrize("pattern", ["!*", "!*/", "!.*", "*\n!*/\n!*", "!**", "!.g*"])
@pytest.mark.parametrize("git", [".git/config", ".git", "sub/.git/config", "sub/.git", ".Git/config"])
def test_no_broad_pattern_brings_git_back(tmp_path: Path, pattern: str, git: str) -> None:
    found = code(write_files(tmp_path, {git: "password", "a.py": "", ".gitignore": pattern}))
    assert not [name for name in names(found) if ".git/" in name.lower() or name.lower().endswith(".git")]


@pytest.mark.parametrize("pattern", ["!.git", "!.git/", "!/.git", "!/.git/", "*.log\n!.git"])
def test_git_is_taken_when_it_is_named(tmp_path: Path, pattern: str) -> None:
    found = code(write_files(tmp_path, {".git/config": "x", "a.py": "", ".danluignore": pattern}))
    assert names(found) == [".danluignore", ".git/config", "a.py"]


def test_a_virtual_environment_is_taken_when_it_is_named(tmp_path: Path) -> None:
    found = code(write_files(tmp_path, {"env/pyvenv.cfg": "", ".danluignore": "!env/"}))
    assert names(found) == [".danluignore", "env/pyvenv.cfg"]


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_an_ignore_file_that_is_none_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ".gitignore"
    {"link": lambda: path.symlink_to("x"), "folder": path.mkdir, "pipe": lambda: os.mkfifo(path)}[kind]()
    with pytest.raises(InvalidSpec, match="ignore file"):
        code(tmp_path)


def test_a_huge_ignore_file_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path, {".gitignore": "x\n" * 600_000})
    with pytest.raises(InvalidSpec, match="1048576"):
        code(tmp_path)


# what cannot be taken


def test_sockets_pipes_and_devices_are_left_out(tmp_path: Path) -> None:
    write_files(tmp_path, {"a": "x"})
    os.mkfifo(tmp_path / "pipe")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener, contextlib.chdir(tmp_path):
        listener.bind("socket")
    special = ["pipe", "socket"]
    with contextlib.suppress(PermissionError):
        os.mknod(tmp_path / "device", 0o20600, os.makedev(1, 3))
        special.insert(0, "device")
    for found in (code(tmp_path), outputs(tmp_path)):
        assert names(found) == ["a"]
        assert [line.split(":")[0] for line in found.skipped] == special


def test_holes_are_kept_as_they_are_and_bounded_together(tmp_path: Path) -> None:
    """They fill no disk, neither here nor where they are kept; but to hash them takes time."""
    root = write_files(tmp_path / "r", {"a": "x", "map": "", "of-holes": ""})
    with (root / "map").open("r+b") as file:  # as a database leaves it that maps more than it holds
        file.write(b"page")
        file.seek(2**26)
        file.write(b"page")
    os.truncate(root / "of-holes", MAX_HOLE_BYTES)
    found = outputs(root)
    assert names(found) == ["a", "map"]
    assert found.skipped == [f"of-holes: outputs have at most {MAX_HOLE_BYTES} bytes of holes: leave a packed copy"]
    blobs = LocalBlobs(tmp_path / "blobs")
    address = next(address for address, (path, _) in found.files.items() if path.endswith("map"))
    with (root / "map").open("rb") as file:
        assert blobs.put("default", address, file) == (1, 2**26 + 4)
    with blobs.open("default", address) as kept:
        assert kept.read() == (root / "map").read_bytes()
    taken = sum(path.stat().st_blocks * 512 for path in (tmp_path / "blobs").rglob("*") if path.is_file())
    assert taken <= 4 * 2**20


@pytest.mark.parametrize("size", [0, 1, 2**20 - 1, 2**20, 2**20 + 1, 3 * 2**20])
def test_what_ends_with_zeros_is_kept_whole(tmp_path: Path, size: int) -> None:
    blobs = LocalBlobs(tmp_path)
    for data in (bytes(size), b"x" + bytes(size), bytes(size) + b"x"):
        assert blobs.put("default", address_of(data), io.BytesIO(data)) in ((1, len(data)), (0, 0))
        with blobs.open("default", address_of(data)) as kept:
            assert kept.read() == data


@pytest.mark.parametrize("target", ["/etc/passwd", "../x", "a/../../x", "sub/../../x", "..\\x", "C:\\x"])
def test_links_that_leave_are_refused(tmp_path: Path, target: str) -> None:
    root = write_files(tmp_path / "r", {"a": "x"})
    (root / "link").symlink_to(target)
    with pytest.raises(InvalidSpec, match="leaves the folder"):
        code(root)
    found = outputs(root)
    assert names(found) == ["a"]
    assert found.skipped[0].startswith("link: ")
    write_files(root, {".danluignore": "link"})
    assert names(code(root)) == [".danluignore", "a"]


@pytest.fixture
def somebody() -> Iterator[Path]:
    """A folder of an ordinary user's, whose rights the test has."""
    folder = Path(tempfile.mkdtemp(prefix="danlu-", dir="/tmp"))
    me = os.geteuid()
    if me == 0:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
    try:
        yield folder
    finally:
        os.seteuid(me)
        for path in folder.rglob("*"):
            if path.is_dir():
                path.chmod(0o700)
        shutil.rmtree(folder)


@pytest.mark.parametrize("secret", ["secret", "closed/secret"])
def test_what_cannot_be_read_is_named(somebody: Path, secret: str) -> None:
    root = write_files(somebody, {secret: "x", "a": "y"})
    closed = root / secret.split("/")[0]
    closed.chmod(0)
    with pytest.raises(InvalidSpec, match=f"{closed}.* cannot be read: Permission denied") as caught:
        code(root)
    assert ".danluignore" in caught.value.next_step
    found = outputs(root)
    assert names(found) == ["a"]
    assert len(found.skipped) == 1
    (root / ".danluignore").write_text("secret\nclosed\n")
    assert names(code(root)) == [".danluignore", "a"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    for missing in (tmp_path / "no", write_files(tmp_path, {"file": ""}) / "file"):
        with pytest.raises(InvalidSpec, match="cannot be read"):
            code(missing)
        found = outputs(missing)
        assert found.count == 0
        assert len(found.skipped) == 1


def test_names_that_are_no_text_are_told(tmp_path: Path) -> None:
    (Path(os.fsdecode(bytes(tmp_path) + b"/\xff"))).write_text("x")
    with pytest.raises(InvalidSpec, match="udcff"):
        code(tmp_path)
    found = outputs(tmp_path)
    assert "udcff" in found.skipped[0]
    found.skipped[0].encode()
    (tmp_path / os.fsdecode(b"\xff")).unlink()
    (tmp_path / "link").symlink_to(os.fsdecode(b"\xff"))
    with pytest.raises(InvalidSpec, match="link"):
        code(tmp_path)
    assert names(outputs(tmp_path)) == []


class Busy(Cache):
    """Changes each file while it is read, as many times as it is told."""

    def __init__(self, times: int) -> None:
        super().__init__(Path("/nonexistent/cache"))
        self.times = times
        self.file: Path | None = None

    def put(self, path: str, status: os.stat_result, address: str, read_at: int) -> None:
        if self.times and self.file is not None:
            self.times -= 1
            with self.file.open("a") as file:
                file.write("more")

    def save(self) -> None:
        pass


def test_a_file_that_changes_is_read_again_and_at_last_refused(tmp_path: Path) -> None:
    busy = Busy(2)
    busy.file = write_files(tmp_path, {"a": "x"}) / "a"
    found = code(tmp_path, cache=busy)
    assert list(found.files) == [address_of(b"xmoremore")]
    busy.times = 3
    with pytest.raises(InvalidSpec, match="changes while it is read"):
        code(tmp_path, cache=busy)


# the cache


class Counting(Cache):
    """Counts what had to be read."""

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self.read: list[str] = []

    def put(self, path: str, status: os.stat_result, address: str, read_at: int) -> None:
        self.read.append(path)
        super().put(path, status, address, read_at)


def test_an_unchanged_file_is_not_read_again(tmp_path: Path) -> None:
    root, file = write_files(tmp_path / "r", {"a": "1", "b": "2"}), tmp_path / "cache/files"
    first, second, third = Counting(file), Counting(file), None
    roots = [scan(root, code=True, now=LATER, cache=first).root]
    second = Counting(file)
    roots.append(scan(root, code=True, now=LATER, cache=second).root)
    assert (first.read, second.read) == (["a", "b"], [])
    (root / "a").write_text("changed")
    third = Counting(file)
    found = scan(root, code=True, now=LATER, cache=third)
    assert third.read == ["a"]
    assert roots[0] == roots[1] != found.root == code(root).root


def test_a_file_that_changed_just_now_is_read_again(tmp_path: Path) -> None:
    """Its times could not tell a change within the same tick."""
    root, file = write_files(tmp_path / "r", {"a": "1"}), tmp_path / "cache"
    status = (root / "a").stat()
    for _ in range(2):
        counting = Counting(file)
        scan(root, code=True, now=status.st_ctime_ns + SECOND, cache=counting)
        assert counting.read == ["a"]
    for expected in (["a"], []):
        counting = Counting(file)
        scan(root, code=True, now=status.st_ctime_ns + 3 * SECOND, cache=counting)
        assert counting.read == expected


@pytest.mark.parametrize(
    "damage", ["", "[]", "7", "{}", '{"format":1}', '{"format":1,"files":[1]}', '{"format":1,"files":{"a":7}}',
               '{"format":1,"files":{"a":[1,2,3,4,"x"]}}', "\xff"],
)  # fmt: skip
def test_a_damaged_cache_costs_only_time(tmp_path: Path, damage: str) -> None:
    root, file = write_files(tmp_path / "r", {"a": "1"}), tmp_path / "cache"
    file.write_text(damage, encoding="latin-1")
    assert scan(root, code=True, now=LATER, cache=Cache(file)).root == code(root).root


def test_an_address_in_the_cache_is_an_address(tmp_path: Path) -> None:
    root, file = write_files(tmp_path / "r", {"a": "1"}), tmp_path / "cache"
    scan(root, code=True, now=LATER, cache=Cache(file))
    file.write_text(file.read_text().replace("sha256:", "sha999:"))
    assert scan(root, code=True, now=LATER, cache=Cache(file)).root == code(root).root
