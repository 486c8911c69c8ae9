"""Trees and packs: one way to write a folder, everything else refused with its reason."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.domain.trees import (
    MAX_DEPTH,
    Entry,
    address_of,
    decode,
    encode,
    frames,
    link_stays_inside,
    require_address,
    totals,
    unpack,
    walk,
)
from danlu.errors import InvalidRequest

SOME = address_of(b"some")
FILE: dict[str, Any] = {"name": "a", "kind": "file", "mode": 420, "size": 1, "address": SOME}
DIR: dict[str, Any] = {"name": "a", "kind": "dir", "size": 1, "files": 1, "address": SOME}
LINK: dict[str, Any] = {"name": "a", "kind": "link", "target": "b"}

names = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=40).filter(
    lambda name: name not in (".", "..")
)
addresses = st.binary(max_size=8).map(address_of)
sizes = st.integers(0, 2**40)
targets = st.lists(names, min_size=1, max_size=4).map("/".join).filter(lambda target: link_stays_inside(0, target))
entries = st.one_of(
    st.builds(Entry, names, st.just("file"), addresses, mode=st.sampled_from([0o644, 0o755]), size=sizes),
    st.builds(Entry, names, st.just("dir"), addresses, size=sizes, files=sizes),
    st.builds(Entry, names, st.just("link"), target=targets),
)
folders = st.lists(entries, max_size=8, unique_by=lambda entry: entry.name)


def node(*rows: Any) -> bytes:
    return json.dumps({"format": 1, "entries": list(rows)}, ensure_ascii=False, separators=(",", ":")).encode()


@given(folders, st.randoms())
def test_a_folder_is_what_was_written_in_whatever_order(found: list[Entry], random: Any) -> None:
    data = encode(found)
    assert set(decode(data)) == set(found)
    random.shuffle(found)
    assert encode(found) == data


@settings(max_examples=150)
@given(folders, st.data())
def test_a_changed_byte_is_refused_or_is_another_folder(found: list[Entry], data: st.DataObject) -> None:
    written = bytearray(encode(found))
    at = data.draw(st.integers(0, len(written) - 1))
    written[at] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del written[at:]
    try:
        read = decode(bytes(written))
    except InvalidRequest:
        return
    assert encode(read) == bytes(written)


@given(
    st.binary(max_size=100)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_anything_else_is_refused_without_a_crash(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        decode(data)


def test_the_exact_bytes_of_a_folder() -> None:
    row = f'{{"name":"é","kind":"file","mode":420,"size":1,"address":"{SOME}"}}'
    assert encode([Entry("é", "file", SOME, size=1)]) == f'{{"format":1,"entries":[{row}]}}'.encode()
    assert encode([]) == b'{"format":1,"entries":[]}'
    assert [e.name for e in decode(encode([Entry(n, "file", SOME) for n in ("é", "z", "Z", "a-b", "a")]))] == [
        "Z",
        "a",
        "a-b",
        "z",
        "é",
    ]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"[" * 100_000, "RecursionError"),
        (b"\xff", "UnicodeDecodeError"),
        ('{"format":1,"entries":[]}'.encode("utf-16"), "UnicodeDecodeError"),
        (b'{"format":1,"entries":[],"x":1}', "format 1"),
        (b'{"format":2,"entries":[]}', "format 1"),
        (b'{"format":true,"entries":[]}', "canonical"),
        (b'{"format":1,"entries":{}}', "format 1"),
        (b'{"format":1,"format":1,"entries":[]}', "canonical"),
        (b'{"format":1, "entries":[]}', "canonical"),
        (b'{"entries":[],"format":1}', "canonical"),
        (b'{"format":1,"entries":[]}\n', "canonical"),
        (node(1), "TypeError"),
        (node({**FILE, "kind": "device"}), "device"),
        (node({**FILE, "kind": []}), "TypeError"),
        (node({**FILE, "name": 7}), "cannot be a file's name"),
        (node({**FILE, "owner": 0}), "owner"),
        (node({**LINK, "address": SOME}), "address"),
        (node({**FILE, "size": 1.0}), "size"),
        (node({**FILE, "size": True}), "size"),
        (node({**FILE, "size": -1}), "size"),
        (node({**FILE, "size": 1 << 63}), "size"),
        (node({**FILE, "mode": 0o4755}), "mode"),
        (node({**FILE, "mode": 0o100644}), "mode"),
        (node({**FILE, "address": SOME.upper()}), "address"),
        (node({**FILE, "address": SOME + "\n"}), "address"),
        (node({**FILE, "address": "sha256:../../x"}), "address"),
        (node({**DIR, "files": -1}), "files"),
        (node(FILE, FILE), "twice"),
        (node({**FILE, "name": "b"}, FILE), "canonical"),
        *(
            (node({**FILE, "name": name}), "cannot be a file's name")
            for name in ("", ".", "..", "a/b", "/etc", "a\0", "x" * 256, "é" * 128)
        ),
        *(
            (node({**LINK, "target": target}), "leaves its tree")
            for target in ("", "/etc", "a/../..", "x\0", "..\\..\\x", "C:x")
        ),
        (node({**LINK, "target": "x" * 4097}), "4096"),
        (b'{"format":1,"entries":[{"name":"\\ud800","kind":"link","target":"b"}]}', "UnicodeEncodeError"),
        (b'{"format":1,"entries":[{"name":"a","kind":"link","target":"\\ud800"}]}', "UnicodeEncodeError"),
        (b'{"format":1,"entries":[{"name":"\\u0061","kind":"link","target":"b"}]}', "canonical"),
        (b'{"format":1,"entries":[' + b"9" * 5000 + b"]}", "ValueError"),
        (b"x" * (16 * 1024 * 1024 + 1), "16777216"),
    ],
)
def test_hostile_nodes_are_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        decode(data)


def test_a_folder_larger_than_a_node_is_not_written() -> None:
    with pytest.raises(InvalidRequest, match="at most 100000 names"):
        encode(Entry(f"{n:0250}", "link", target="x") for n in range(70_000))


@pytest.mark.parametrize(
    "text", ["", "sha256:", "sha256:" + "A" * 64, "sha256:" + "a" * 64 + "\n", "md5:" + "a" * 32, None]
)
def test_addresses_are_exact(text: Any) -> None:
    with pytest.raises(InvalidRequest):
        require_address(text)


@pytest.mark.parametrize(
    ("target", "depth", "inside"),
    [
        ("x", 0, True),
        ("..", 0, False),
        ("..", 1, True),
        ("../../x", 1, False),
        ("./x//y", 0, True),
        ("up/../x", 9, False),  # where `up` links to the root, this is the root's parent
        ("...", 0, True),
    ],
)
def test_links_stay_inside(target: str, depth: int, inside: bool) -> None:
    assert link_stays_inside(depth, target) is inside


class Nodes(dict[str, bytes]):
    def add(self, *found: Entry) -> str:
        data = encode(found)
        self[address_of(data)] = data
        return address_of(data)


def test_walk_goes_through_folders_in_order() -> None:
    nodes = Nodes()
    leaf = nodes.add(Entry("f", "file", SOME, size=3), Entry("l", "link", target="../b"))
    root = nodes.add(Entry("a", "dir", leaf, size=3, files=1), Entry("b", "dir", nodes.add()))
    assert [path for path, _ in walk(root, nodes.__getitem__)] == [(), ("a",), ("b",)]
    assert totals(decode(nodes[root])) == (3, 1)


def test_walk_refuses_a_bomb_of_folders() -> None:
    nodes = Nodes()
    address = nodes.add()
    for _ in range(40):
        address = nodes.add(Entry("a", "dir", address), Entry("b", "dir", address))
    with pytest.raises(InvalidRequest, match="more than 1000 entries"):
        list(walk(address, nodes.__getitem__, max_entries=1000))


def test_walk_refuses_what_is_too_deep() -> None:
    nodes = Nodes()
    address = nodes.add()
    for _ in range(MAX_DEPTH):
        address = nodes.add(Entry("a", "dir", address))
    assert len(list(walk(address, nodes.__getitem__))) == MAX_DEPTH + 1
    with pytest.raises(InvalidRequest, match="64 levels"):
        list(walk(nodes.add(Entry("a", "dir", address)), nodes.__getitem__))


def test_walk_refuses_lies_and_links_that_leave() -> None:
    nodes = Nodes()
    with pytest.raises(InvalidRequest, match="other totals"):
        list(walk(nodes.add(Entry("a", "dir", nodes.add(), files=1)), nodes.__getitem__))
    with pytest.raises(InvalidRequest, match="leaves it"):
        list(walk(nodes.add(Entry("l", "link", target="../x")), nodes.__getitem__))


@given(st.lists(st.binary(max_size=50), max_size=10), st.integers(1, 30))
def test_a_pack_comes_back_however_it_is_cut(blobs: list[bytes], step: int) -> None:
    pack = b"".join(frames(blobs))
    wanted = [(address_of(blob), blob) for blob in blobs]
    assert list(unpack([pack[at : at + step] for at in range(0, len(pack), step)])) == wanted
    assert list(unpack(pack)) == wanted


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=4), st.data())
def test_a_changed_pack_is_refused(blobs: list[bytes], data: st.DataObject) -> None:
    pack = bytearray(b"".join(frames(blobs)))
    pack[data.draw(st.integers(0, len(pack) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(InvalidRequest):
        list(unpack(bytes(pack)))


def test_a_pack_is_bounded() -> None:
    one = b"".join(frames([b"some"]))
    with pytest.raises(InvalidRequest, match="cut short at byte 44 of 87"):
        list(unpack([one + one[:-1]]))
    with pytest.raises(InvalidRequest, match="blobs of 3 bytes"):
        list(unpack(one, max_blob_bytes=3))
    with pytest.raises(InvalidRequest, match="at most 1 blobs"):
        list(unpack([one, one], max_blobs=1))
    with pytest.raises(InvalidRequest, match="18446744073709551615"):
        list(unpack(b"\xff" * 40))
