"""Uploads by the API: by content, checked, complete before a job may name them."""

from __future__ import annotations

import zlib

import pytest

from danlu.domain.trees import Entry, address_of, encode, frames
from tests.api.edge import FILE, Api


def test_only_what_is_missing_is_asked_for(api: Api) -> None:
    new = address_of(b"new")
    answer = api.call("blobs.missing", data={"addresses": [api.ids["address"], new]})
    assert answer.json() == {"addresses": [new]}
    assert api.call("blobs.missing", data={"addresses": ["x"]}).status in (400, 422)


def test_a_pack_is_stored_and_read_again(api: Api) -> None:
    blobs = [b"one", b"two", b""]
    answer = api.call("blobs.pack", data=b"".join(frames(blobs)))
    assert (answer.status, answer.json()) == (201, {"blobs": 3, "size_bytes": 6})
    for blob in blobs:
        assert api.call("blobs.get", address=address_of(blob)).content == blob


def test_wrong_bytes_are_refused(api: Api) -> None:
    answer = api.call("blobs.put", address=address_of(b"right"), data=b"wrong")
    assert (answer.status, answer.json()["code"]) == (400, "InvalidRequest")
    assert api.call("blobs.get", address=address_of(b"right")).status == 404
    torn = b"".join(frames([b"whole"]))[:-1]
    assert api.call("blobs.pack", data=torn).status == 400
    assert api.call("blobs.get", address=address_of(b"whole")).status == 404


def test_a_pack_too_large_is_refused(api: Api) -> None:
    assert api.call("blobs.pack", data=b"x" * (16 * 2**20 + 1)).status == 413


def test_another_project_does_not_have_it(api: Api) -> None:
    assert api.call("blobs.get", actor="foreign").status == 404
    answer = api.call("blobs.missing", actor="foreign", data={"addresses": [api.ids["address"]]})
    assert answer.json()["addresses"] == [api.ids["address"]]


def test_a_job_needs_its_code_whole(api: Api) -> None:
    inner = encode([Entry("lost.py", "file", address_of(b"lost"), 0o644, 4)])
    outer = encode([Entry("lib", "dir", address_of(inner), size=4, files=1)])
    api.call("blobs.pack", data=b"".join(frames([outer])))
    answer = api.submit(code=address_of(outer))
    assert (answer.status, answer.json()["code"]) == (422, "InvalidSpec")
    api.call("blobs.pack", data=b"".join(frames([inner])))
    assert api.submit(code=address_of(outer)).status == 422
    api.call("blobs.pack", data=b"".join(frames([b"lost"])))
    assert api.submit(code=address_of(outer)).status == 201


def test_what_is_no_tree_is_no_code(api: Api) -> None:
    answer = api.submit(code=address_of(FILE))
    assert answer.status in (400, 422)
    assert api.submit(code=address_of(api.node)).status == 201


# what came with uploads at scale


def send(api: Api, body: bytes, encoding: str) -> int:
    headers = {"Content-Encoding": encoding}
    return api.send("POST", "/v1/blobs", data=body, headers=headers).status


def test_a_pack_may_be_deflated(api: Api) -> None:
    pack = b"".join(frames([b"deflated" * 1000]))
    assert send(api, zlib.compress(pack), "deflate") == 201
    assert api.call("blobs.get", address=address_of(b"deflated" * 1000)).content == b"deflated" * 1000


@pytest.mark.parametrize("size", [2**20 - 40, 2**20 - 39, 2**20, 3 * 2**20 - 40])
def test_a_deflated_pack_may_have_any_size(api: Api, size: int) -> None:
    assert send(api, zlib.compress(b"".join(frames([b"x" * size]))), "deflate") == 201
    assert api.call("blobs.missing", data={"addresses": [address_of(b"x" * size)]}).json() == {"addresses": []}


@pytest.mark.parametrize(
    "body", [b"", b"no zlib", zlib.compress(b"".join(frames([b"x" * 100])))[:-1], zlib.compress(b"") + b"more"]
)
def test_what_is_not_deflated_is_refused(api: Api, body: bytes) -> None:
    assert send(api, body, "deflate") == 400


def test_an_unknown_encoding_is_refused(api: Api) -> None:
    assert send(api, b"", "br") == 400
    assert send(api, b"", "identity") == 201


def test_a_bomb_is_stopped(api: Api) -> None:
    assert send(api, zlib.compress(bytes(500 * 2**20), 1), "deflate") == 413


def test_a_tree_is_asked_for_with_all_below_it(api: Api) -> None:
    lost = encode([Entry("lost.py", "file", address_of(b"lost"), 0o644, 4)])
    api.call("blobs.pack", data=b"".join(frames([lost])))
    known, new = address_of(api.node), address_of(b"new")
    answer = api.call("blobs.missing", data={"addresses": [new], "trees": [known, address_of(lost), new]})
    assert answer.json() == {"addresses": [new, address_of(b"lost")]}
    assert api.call("blobs.missing", data={"trees": [address_of(FILE)]}).status == 400  # it is no folder
    assert api.call("blobs.missing", actor="foreign", data={"trees": [known]}).json()["addresses"] == [known]


def test_a_blob_is_spliced_of_another(api: Api) -> None:
    splice = {
        "address": address_of(b"one, TWO, three"), "base": address_of(b"one, two, three"), "head_bytes": 5,
        "middle": "TWO", "tail_bytes": 7,
    }  # fmt: skip
    assert api.call("blobs.splice", data={"splices": [splice]}).status == 404
    api.call("blobs.pack", data=b"".join(frames([b"one, two, three"])))
    answer = api.call("blobs.splice", data={"splices": [splice]})
    assert (answer.status, answer.json()) == (201, {"blobs": 1, "size_bytes": 15})
    assert api.call("blobs.get", address=splice["address"]).content == b"one, TWO, three"
    wrong = {**splice, "address": address_of(b"else")}
    assert api.call("blobs.splice", data={"splices": [wrong]}).status == 400
    assert api.call("blobs.splice", data={"splices": [{**splice, "tail_bytes": 70}]}).status == 400
    assert api.call("blobs.splice", actor="foreign", data={"splices": [splice]}).status == 404


def test_many_splices_of_a_large_blob_are_bounded(api: Api) -> None:
    large = b"x" * 2**20
    api.call("blobs.pack", data=b"".join(frames([large])))
    splice = {"base": address_of(large), "head_bytes": 2**20, "tail_bytes": 0}
    many = [{**splice, "middle": str(n), "address": address_of(large + str(n).encode())} for n in range(70)]
    assert api.call("blobs.splice", data={"splices": many}).status == 413
    assert api.call("blobs.get", address=many[0]["address"]).status == 404


def test_what_splices_are_made_of_is_counted_too(api: Api) -> None:
    large = [b"%d" % n + b"x" * (15 * 2**20) for n in range(5)]
    for data in large:
        assert api.call("blobs.put", address=address_of(data), data=data).status == 201
    many = [
        {"base": address_of(data), "head_bytes": 1, "tail_bytes": 0, "middle": "", "address": address_of(data[:1])}
        for data in large
    ]
    assert api.call("blobs.splice", data={"splices": many}).status == 413
    assert api.call("blobs.splice", data={"splices": many[:1] * 1000}).status == 201  # it is read once


def test_a_blob_comes_in_pieces(api: Api) -> None:
    address = address_of(b"in pieces")
    assert api.call("blobs.received", address=address).json() == {"size_bytes": 0}
    first = api.call("blobs.append", address=address, data=b"in ", query="?size_bytes=9")
    assert (first.status, first.json()) == (200, {"size_bytes": 3})
    again = api.call("blobs.append", address=address, data=b"in ", query="?size_bytes=9")
    assert (again.status, again.json()["code"]) == (409, "Conflict")
    assert api.call("blobs.received", address=address, actor="foreign").json() == {"size_bytes": 0}
    last = api.call("blobs.append", address=address, data=b"pieces", query="?offset=3")
    assert last.json() == {"size_bytes": 9}
    assert api.call("blobs.get", address=address).content == b"in pieces"
    assert api.call("blobs.append", address="x", data=b"y").status == 400


def test_the_differences_must_be_there(api: Api) -> None:
    git = {"commit": "0" * 40, "branch": "main", "dirty": True, "diff": address_of(b"new")}
    answer = api.submit(git=git)
    assert (answer.status, answer.json()["code"]) == (422, "InvalidSpec")
    answer = api.submit(git={**git, "diff": api.ids["address"]})
    assert answer.status == 201
    assert answer.json()["spec"]["git"]["branch"] == "main"
    assert api.submit(git={"commit": "HEAD"}).status == 422
