"""Uploads by the API: by content, checked, complete before a job may name them."""

from __future__ import annotations

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
