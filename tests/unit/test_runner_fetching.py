"""A tree as it comes over the wire: laid out as it was, and nothing else than it says, whatever comes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from danlu.blobs.folders import scan
from danlu.domain.trees import Entry, address_of, encode, frames
from danlu.runner.fetching import Damaged, Unpacking, empty
from danlu.runner.trees import MAX_NODE_BYTES

HELLO = b"hello\n"
FILE = Entry("a.txt", "file", address_of(HELLO), 0o644, len(HELLO))


def lay(tmp_path: Path, root: bytes, *blobs: bytes) -> Path:
    """Lays out a tree whose pack has these blobs after its root; returns the folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    pack = b"".join(frames([root, *blobs]))
    Unpacking(address_of(root), str(folder)).run(chopped(pack))
    return folder


def chopped(pack: bytes) -> Iterable[bytes]:
    return (pack[at : at + 7] for at in range(0, len(pack), 7))


def directory(name: str, node: bytes, files: int = 1) -> Entry:
    return Entry(name, "dir", address_of(node), size=len(HELLO) * files, files=files)


def test_a_folder_is_what_it_was(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "one" / "two").mkdir(parents=True)
    (source / "one" / "two" / "deep").write_text("deep")
    (source / "one" / "again").write_text("deep")
    (source / "run").write_text("deep")
    (source / "run").chmod(0o755)
    (source / "empty").write_text("")
    (source / "one" / "link").symlink_to("../run")
    found = scan(source, code=True, now=time.time_ns())
    inner = [node for address, node in found.nodes.items() if address != found.root]
    blobs = [Path(path).read_bytes() for path, _ in found.files.values()]
    # a folder comes before what is in it
    order = sorted(inner, key=lambda node: b'"deep"' in node)
    folder = lay(tmp_path, found.nodes[found.root], *order, *blobs)
    assert scan(folder, code=True, now=time.time_ns()).root == found.root
    assert os.access(folder / "run", os.X_OK)
    assert (folder / "one" / "link").read_text() == "deep"
    (folder / "run").write_text("changed")
    assert (folder / "one" / "again").read_text() == "deep"
    empty(str(folder))
    assert list(folder.iterdir()) == []


def test_what_is_there_often_comes_once(tmp_path: Path) -> None:
    inner = encode([FILE])
    root = encode([directory("x", inner), directory("y", inner), FILE])
    folder = lay(tmp_path, root, inner, HELLO)
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.txt")} == {"a.txt", "x/a.txt", "y/a.txt"}


def test_a_folder_that_is_there_again_after_its_files_have_come(tmp_path: Path) -> None:
    inner = encode([FILE])
    outer = encode([directory("z", inner)])
    root = encode([directory("x", inner), directory("y", outer)])
    folder = lay(tmp_path, root, inner, HELLO, outer)
    assert (folder / "y" / "z" / "a.txt").read_bytes() == HELLO


@pytest.mark.parametrize(
    ("root", "blobs", "why"),
    [
        (encode([FILE]), [], "not complete"),
        (encode([FILE]), [b"another"], "not of the tree"),
        (encode([FILE]), [HELLO, HELLO], "not of the tree"),
        (encode([Entry("a", "file", address_of(HELLO), 0o644, 3)]), [HELLO], "6 bytes, and its tree says 3"),
        (b'{"format":1,"entries":[{"name":"../a","kind":"link","target":"x"}]}', [], "cannot be a file's name"),
        (b'{"format":1,"entries":[{"name":"a","kind":"link","target":"../x"}]}', [], "leaves its tree"),
        (b'{"format":1,"entries":[{"name":"a","kind":"link","target":"/x"}]}', [], "leaves its tree"),
        (b'{"format":1,"entries":[{"name":"a","kind":"pipe"}]}', [], "not a tree node"),
        (b'{"format":1,"entries":[{"name":"a","kind":"link","target":"b"},{"name":"a","kind":"link","target":"b"}]}', [],
         "twice"),
        (b'{"format":1,"entries":[{"name":"a","kind":"file","mode":2541,"size":1,"address":"x"}]}', [], "mode is 2541"),
        (b"no JSON", [], "not a tree node"),
        (b'{"format":1, "entries":[]}', [], "not in canonical form"),
    ],
)  # fmt: skip
def test_nothing_else_is_taken(tmp_path: Path, root: bytes, blobs: list[bytes], why: str) -> None:
    with pytest.raises(Damaged, match=why):
        lay(tmp_path, root, *blobs)
    assert not (tmp_path / "a").exists()


def test_bytes_that_are_not_what_their_address_says(tmp_path: Path) -> None:
    root = encode([FILE])
    pack = b"".join(frames([root, HELLO])).replace(HELLO, b"hullo\n")
    with pytest.raises(Damaged, match="not what its address says"):
        Unpacking(address_of(root), str(tmp_path)).run([pack])


@pytest.mark.parametrize("short", [1, 20, 45, 60])
def test_a_pack_that_is_cut(tmp_path: Path, short: int) -> None:
    root = encode([FILE])
    pack = b"".join(frames([root, HELLO]))[:-short]
    with pytest.raises(Damaged, match=r"cut short|not complete"):
        Unpacking(address_of(root), str(tmp_path)).run(chopped(pack))


def test_a_description_without_end(tmp_path: Path) -> None:
    root = encode([FILE])
    head = bytes.fromhex(address_of(root).partition(":")[2]) + (MAX_NODE_BYTES + 1).to_bytes(8, "big")
    with pytest.raises(Damaged, match="too many"):
        Unpacking(address_of(root), str(tmp_path)).run([head])


def test_it_stands_where_nothing_stood(tmp_path: Path) -> None:
    """A link that lies there already is not followed."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "a.txt").symlink_to(tmp_path / "outside")
    root = encode([FILE])
    with pytest.raises(FileExistsError):
        Unpacking(address_of(root), str(folder)).run([b"".join(frames([root, HELLO]))])
    assert not (tmp_path / "outside").exists()
