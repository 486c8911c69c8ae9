"""Blobs that nothing refers to: found, condemned, removed; whatever comes to need them meanwhile keeps them."""

from __future__ import annotations

import io
import itertools
import random
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from danlu.api.bodies import AddressesAndTrees, PruneBlobsRequest
from danlu.blobs import unused as condemning
from danlu.blobs.base import Blobs
from danlu.blobs.bucket_blobs import PART_BYTES
from danlu.blobs.local import LocalBlobs
from danlu.blobs.unused import SETTLE_S
from danlu.controllers.collection import CollectionController
from danlu.database.engine import Database
from danlu.database.leadership import Fenced
from danlu.database.records import ARTIFACTS, OUTPUTS
from danlu.domain.artifacts import Artifact
from danlu.domain.trees import Entry, address_of, encode
from danlu.errors import Conflict, LeadershipLost, Unavailable
from danlu.services import blobs as service
from danlu.services.blobs import require_tree
from danlu.services.context import Hub
from danlu.services.unused import Removal, find, references
from tests.contracts.test_stored import Clock, World
from tests.databases import add
from tests.factories import NOW, Trees, make_artifact, make_job, make_outputs
from tests.stores import Store

P = "default"
LATER = 2**62


def put(blobs: Blobs, *many: bytes) -> None:
    blobs.put_many(P, [(address_of(data), data) for data in many])


@pytest.fixture
def bench(sqlite: Database, store: Store, tmp_path: Path) -> World:
    return World(sqlite, tmp_path, store.blobs())


def tree_of(bench: World, **files: bytes) -> tuple[str, set[str]]:
    """Stores a folder of folders; returns its root and all addresses."""
    trees = Trees()
    inner = trees.folder(*(trees.file(name, data) for name, data in files.items()))
    root = trees.folder(Entry("d", "dir", inner, size=sum(map(len, files.values())), files=len(files)))
    put(bench.blobs, *trees.values())
    return root, set(trees)


def removal(bench: World) -> Removal:
    """Returns what removes, as a server has it that leads from now on."""
    return Removal(Fenced(bench.database, bench.term), bench.blobs, bench.clock)


def removed(bench: World) -> None:
    """Lets the time pass that a condemned blob has."""
    one = removal(bench)
    one.step()
    bench.clock.at += int(SETTLE_S * 1e9) + 1
    one.step()


def test_what_jobs_and_artifacts_refer_to_is_used(bench: World) -> None:
    code, first = tree_of(bench, a=b"1", b=b"2")
    outputs, second = tree_of(bench, a=b"1", c=b"3")
    add(bench.database, make_job(spec={"code": code, "git": {"diff": address_of(b"diff")}}))
    artifact = Artifact(
        id="a" + "0" * 26, project=P, job_id="j", attempt_id="j-1", tree=outputs, partial=False, files=2, size_bytes=2,
        created_at=NOW, updated_at=NOW,
    )  # fmt: skip
    bench.database.write(lambda tx: ARTIFACTS.add(tx, artifact))
    put(bench.blobs, b"diff", b"unused")
    assert references(bench.database, bench.blobs, P) == first | second | {address_of(b"diff")}
    assert [one.address for one in find(bench.database, bench.blobs, P, LATER)] == [address_of(b"unused")]
    assert find(bench.database, bench.blobs, P, 0) == [], "they are too young"


def test_what_is_unused_goes_and_can_be_sent_again(bench: World, store: Store) -> None:
    large = random.Random(1).randbytes(PART_BYTES + 1)
    bench.send(b"kept", b"unused")
    service.put(bench.call(), address_of(large), io.BytesIO(large))
    bench.controller.step()
    gone = [address_of(b"unused"), address_of(large)]
    bench.blobs.condemn(P, gone, bench.clock.wall())
    assert set(bench.blobs.missing(P, [*gone, address_of(b"kept")])) == set(gone), "from now on they are not there"
    for store_it in (lambda: put(bench.blobs, b"unused"), lambda: bench.blobs.put(P, gone[0], io.BytesIO(b"unused")),
                     lambda: bench.blobs.append(P, gone[0], io.BytesIO(b"unused"), offset=0, size=6)):  # fmt: skip
        with pytest.raises(Unavailable, match="is being removed"):
            store_it()
    removal(bench).step()
    assert bench.blobs.read(P, gone[0]) == b"unused", "it is too early"
    removed(bench)
    assert bench.blobs.stored_bytes(P) == len(b"kept")
    assert bench.used() == len(b"kept")
    assert not any("/parts/" in name for name in store.names())
    put(bench.blobs, b"unused")
    assert bench.blobs.missing(P, gone) == (address_of(large),)


def test_a_server_whose_clock_is_late_leaves_as_much_time(bench: World) -> None:
    """The one that condemned them; and one that comes to lead begins to wait anew."""
    put(bench.blobs, b"unused")
    bench.blobs.condemn(P, [address_of(b"unused")], bench.clock.wall() - 10 * int(SETTLE_S * 1e9))
    removal(bench).step()
    second = removal(bench)
    second.step()
    bench.clock.at += int(SETTLE_S * 1e9) - 1
    second.step()
    assert bench.blobs.stored_bytes(P) == len(b"unused")
    bench.clock.at += 1
    second.step()
    assert bench.blobs.stored_bytes(P) == 0


def test_who_does_not_lead_any_more_removes_nothing(bench: World) -> None:
    """Another server may have removed them, and what is there now was sent again."""
    put(bench.blobs, b"unused")
    bench.blobs.condemn(P, [address_of(b"unused")], bench.clock.wall())
    late = removal(bench)
    late.step()
    bench.clock.at += int(SETTLE_S * 1e9)
    bench.term.end()
    with pytest.raises(LeadershipLost):
        late.step()
    with pytest.raises(LeadershipLost):
        bench.controller._unused(bench.clock.now())
    assert bench.blobs.stored_bytes(P) == len(b"unused")
    assert bench.blobs.condemned(P).addresses


def test_what_a_job_comes_to_need_meanwhile_is_kept(bench: World) -> None:
    code, addresses = tree_of(bench, a=b"1")
    require_tree(bench.call(), code)
    bench.blobs.condemn(P, addresses, bench.clock.wall())
    add(bench.database, make_job(spec={"code": code}))  # was told just before that all of it was there
    removed(bench)
    require_tree(bench.call(), code)
    assert bench.blobs.missing(P, addresses) == ()


class Condemning(LocalBlobs):
    """Blobs of which some are condemned while others are stored, which may take long."""

    gone: tuple[str, ...] = ()

    def put_many(self, project: str, blobs: Iterable[tuple[str, bytes]]) -> tuple[int, int]:
        self.condemn(project, self.gone, NOW)
        return super().put_many(project, blobs)


def test_outputs_that_were_there_already_are_looked_for_again_once_the_others_are_stored(tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "old").write_bytes(b"old")
    blobs, nothing = Condemning(tmp_path / "blobs"), SimpleNamespace()
    node = encode([Entry("old", "file", address_of(b"old"), 0o644, 3)])
    put(blobs, b"old", node)
    controller = CollectionController(*[nothing] * 3, blobs, nothing, Clock(), Hub(), nothing)  # type: ignore[arg-type]
    attempt: Any = SimpleNamespace(project=P)
    assert controller._found(attempt, tmp_path / "outputs").root == address_of(node)
    blobs.gone = (address_of(b"old"),)
    with pytest.raises(Unavailable, match="1 blobs that nothing else refers to"):
        controller._found(attempt, tmp_path / "outputs")


def test_a_tree_that_was_whole_is_not_any_more(bench: World, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _ = tree_of(bench, a=b"1")
    other = bench.blobs if type(bench.blobs).__name__ == "LocalBlobs" else store.blobs()  # a second server
    assert other.absent(P, code, most=9) == ()
    bench.blobs.condemn(P, [address_of(b"1")], bench.clock.wall())
    monkeypatch.setitem(vars(condemning), "SEEN_S", 0.0)
    assert other.absent(P, code, most=9) == (address_of(b"1"),)
    removed(bench)
    assert other.absent(P, code, most=9) == (address_of(b"1"),)
    put(other, b"1")
    assert other.absent(P, code, most=9) == ()


def test_who_prunes_is_told_what_goes(bench: World) -> None:
    bench.send(b"one", b"three")
    bench.clock.at += 10**18  # the store's own clock tells when they were stored
    call = bench.call()
    would = service.prune(call, PruneBlobsRequest(unused_for=3600, dry_run=True))
    assert (would.blobs, would.size_bytes) == (2, 8)
    assert service.missing(call, AddressesAndTrees(addresses=(address_of(b"one"),))).addresses == ()
    assert service.prune(call, PruneBlobsRequest(unused_for=3600)).blobs == 2
    with pytest.raises(Conflict, match="2 blobs of default are being removed"):
        service.prune(call, PruneBlobsRequest(unused_for=3600))
    removed(bench)
    assert service.prune(call, PruneBlobsRequest(unused_for=3600)).blobs == 0
    assert bench.blobs.stored_bytes(P) == 0


@pytest.mark.parametrize("at", range(1, 7))
def test_what_a_task_sent_is_used_while_it_becomes_an_artifact(bench: World, at: int) -> None:
    tree, addresses = tree_of(bench, a=b"1")
    sent = make_outputs(tree=tree)
    bench.database.write(lambda tx: OUTPUTS.add(tx, sent))
    reads = itertools.count(1)

    def collected(tx: Any) -> None:
        ARTIFACTS.add(tx, make_artifact(tree=tree))
        OUTPUTS.remove(tx, sent)

    def read(work: Any) -> Any:
        if next(reads) == at:
            bench.database.write(collected)
        return bench.database.read(work)

    looks = SimpleNamespace(read=read, write=bench.database.write)
    assert references(looks, bench.blobs, P) >= addresses  # type: ignore[arg-type]
