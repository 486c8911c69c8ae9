"""What is stored, on each database: counted once however it came, and never more than a limit by what users send."""

from __future__ import annotations

import io
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from danlu.api.bodies import Paging, PieceQuery, QuotaChange
from danlu.blobs.base import Blobs
from danlu.blobs.local import LocalBlobs
from danlu.blobs.local_streams import LocalStreams
from danlu.controllers.stored import LOOK_S, StoredController
from danlu.database import leadership
from danlu.database import stored as counts
from danlu.database.engine import Database, Transaction
from danlu.database.leadership import Candidate, Fenced, Term
from danlu.database.records import ATTEMPTS, JOBS, PROJECTS
from danlu.domain.actors import Actor
from danlu.domain.jobs import AttemptState, Job, Reason
from danlu.domain.quotas import STORAGE, UNLIMITED
from danlu.domain.specs import JobSpec
from danlu.domain.trees import address_of, frames
from danlu.domain.users import PLATFORM
from danlu.domain.views import QuotaUse
from danlu.errors import Conflict, InvalidRequest, QuotaExceeded
from danlu.services import blobs, jobs, quotas, stored
from danlu.services.context import Call, Platform, PlatformFacts
from danlu.services.vault import Vault
from tests.databases import ended, together
from tests.factories import NOW, SECOND, Ids, make_attempt, make_job, make_project

UPLOADS, LIMIT = 64, 1000
HOUR, DAY = 3600 * SECOND, 86_400 * SECOND


@dataclass
class Clock:
    """A clock that is set."""

    at: int = NOW

    def now(self) -> int:
        return self.at

    def wall(self) -> int:
        return self.at


class Files:
    """Jobs' checkpoints, as an executor sees them."""

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self.looks = 0
        self.meanwhile: Callable[[], object] = lambda: None

    def checkpoint_owners(self) -> list[str]:
        return sorted(self.sizes)

    def checkpoint_bytes(self, owner: str) -> int:
        self.looks += 1
        found = self.sizes.get(owner, 0)
        self.meanwhile()
        return found


class World:
    """A platform with two projects below a group, and what looks after what they store."""

    def __init__(self, database: Database, folder: Path, store: Blobs | None = None) -> None:
        self.database, self.blobs, self.clock, self.files = database, store or LocalBlobs(folder), Clock(), Files()
        self.platform = Platform(
            database=database, blobs=self.blobs, streams=LocalStreams(folder), clock=self.clock, random_bits=secrets.randbits,
            attempt_key=b"k" * 32, vault=Vault(b"m" * 32, secrets.token_bytes),
            facts=PlatformFacts(home=str(folder), started_at=NOW, isolation="one user", host_environment=True),
        )  # fmt: skip
        database.write(lambda tx: PROJECTS.add_all(tx, [make_project("default", 0), make_project("other", 1)]))
        self.start()

    def start(self) -> None:
        """Begins a server's life."""
        files: Any = self.files
        lease = self.database.write(lambda tx: leadership.take(tx, Candidate("w", "this machine"), 60.0))
        assert lease is not None
        self.term = Term(lease, leadership.FOREVER)
        self.controller = StoredController(Fenced(self.database, self.term), files, self.blobs, self.clock)

    def look(self) -> None:
        """Lets the controller look until it waits for what happens next."""
        while self.controller.step() < LOOK_S:
            pass

    def call(self, project: str = "default") -> Call:
        return Call(self.platform, Actor(id="k", name="admin", administrator=True), project)

    def limit(self, name: str, amount: int | None = LIMIT, **fields: Any) -> QuotaUse:
        limit = {} if amount is None else {STORAGE: amount}
        return quotas.set(self.call(PLATFORM), name, QuotaChange(limit=limit, **fields))

    def send(self, *data: bytes, project: str = "default") -> int:
        """Sends a pack; returns how many bytes of it were new."""
        return blobs.pack(self.call(project), b"".join(frames(data))).size_bytes

    def piece(self, data: bytes, offset: int, size: int, whole: bytes) -> int:
        return blobs.append(self.call(), address_of(whole), PieceQuery(offset=offset, size_bytes=size), data).size_bytes

    def used(self, project: str = "default") -> int:
        return self.database.read(counts.used).get(project, 0)

    def submit(self) -> Job:
        job = self.platform.new_id("j")
        return jobs.submit(self.call(), job, JobSpec(command="true", env="host", interpreter="/usr/bin/python3"))


@pytest.fixture
def world(database: Database, tmp_path: Path) -> World:
    return World(database, tmp_path / "blobs")


@pytest.mark.parametrize("whose", ["the project's", "its group's"])
def test_of_many_uploads_one_gets_the_last_room(world: World, whose: str) -> None:
    if whose == "its group's":
        world.limit("team", group=True)
        for project in ("default", "other"):
            world.limit(project, None, parent="team")
    else:
        world.limit("default")
    projects = ["default", "other"] if whose == "its group's" else ["default"]
    world.send(b"x" * (LIMIT - 7))

    def upload(at: int) -> int:
        return world.send(b"%7d" % at, project=projects[at % len(projects)])

    done = together(UPLOADS, upload)
    refused = [one for one in done if isinstance(one, QuotaExceeded)]
    assert [one for one in done if not isinstance(one, QuotaExceeded)] == [7]
    assert len(refused) == UPLOADS - 1
    on_disk = [world.blobs.stored_bytes(project) for project in projects]
    assert sum(on_disk) == LIMIT
    assert [world.used(project) for project in projects] == on_disk


def test_what_has_no_room_is_refused_with_its_numbers_and_nothing_of_it_is_stored(world: World) -> None:
    world.limit("default")
    world.send(b"x" * 900)
    small, large = b"s" * 60, b"l" * 50
    with pytest.raises(QuotaExceeded) as found:
        world.send(small, large)
    assert found.value.message == (
        "there is no room for an upload of 110B: the limit of default is 1KB of storage, of which it has used 900B"
    )
    assert found.value.next_step.startswith("have an administrator raise it: danlu quota set default storage=1010B ")
    assert found.value.details == {"quota": "default", "resource": "storage", "limit": 1000, "used": 900, "asked": 110}
    assert len(world.blobs.missing("default", [address_of(small), address_of(large)])) == 2
    assert world.used() == 900
    assert world.send(small) == 60
    with pytest.raises(QuotaExceeded):
        blobs.put(world.call(), address_of(large), io.BytesIO(large))
    assert world.used() == world.blobs.stored_bytes("default") == 960


def test_one_content_counts_once_and_may_always_come_again(world: World) -> None:
    same = b"s" * 100
    done = together(8, lambda at: world.send(same, b"%d" % at))
    assert sorted(done) == [1] * 7 + [101]
    assert world.used() == world.blobs.stored_bytes("default") == 108
    assert world.send(same, project="other") == 100  # no project knows what another one has
    world.limit("default", 1)
    assert world.send(same) == 0
    assert blobs.put(world.call(), address_of(same), io.BytesIO(same)).blobs == 0
    assert world.used() == 108


def test_an_upload_that_fails_counts_nothing(world: World) -> None:
    with pytest.raises(InvalidRequest):
        blobs.put(world.call(), address_of(b"right"), io.BytesIO(b"wrong"))
    assert world.used() == 0


def test_what_a_job_leaves_is_kept_above_the_limit_and_then_nothing_more_is_taken(world: World) -> None:
    world.limit("default", 150)
    with stored.results(world.database, world.clock, "default", 200) as storing:
        storing.new_bytes = world.blobs.put("default", address_of(b"r" * 200), io.BytesIO(b"r" * 200))[1]
    assert world.used() == 200
    for work in (lambda: world.send(b"one"), world.submit):
        with pytest.raises(QuotaExceeded, match="is 150B of storage, of which it has used 200B"):
            work()
    use = quotas.get(world.call(), "default")
    assert (use.used[STORAGE], use.over) == (200, {STORAGE: 50})
    world.limit("default", 201)
    assert world.submit().live
    assert world.send(b"1") == 1
    with pytest.raises(QuotaExceeded, match="no room for what a new job leaves: "):
        world.submit()


def test_a_limit_of_nothing_takes_nothing(world: World) -> None:
    world.limit("default", 0)
    with pytest.raises(QuotaExceeded, match="the limit of default is no storage, of which it has used 0"):
        world.submit()
    world.limit("default", UNLIMITED)
    assert world.submit().live


# in pieces


def test_an_upload_in_pieces_has_the_room_for_all_of_it_from_its_first_one_on(world: World) -> None:
    world.limit("default")
    whole = secrets.token_bytes(900)
    assert world.piece(whole[:300], 0, 900, whole) == 300
    assert world.used() == 900
    with pytest.raises(QuotaExceeded, match="has used 900B"):
        world.send(b"x" * 101)
    for at in (300, 600):
        world.piece(whole[at : at + 300], at, 900, whole)
    world.piece(whole[600:], 600, 900, whole)  # its answer was lost
    assert world.used() == world.blobs.stored_bytes("default") == 900
    other = secrets.token_bytes(101)
    with pytest.raises(QuotaExceeded):
        world.piece(other[:1], 0, 101, other)
    assert blobs.received(world.call(), address_of(other)).size_bytes == 0
    assert world.used() == 900


def test_of_uploads_in_pieces_that_begin_together_one_gets_the_room(world: World) -> None:
    world.limit("default")
    some = [secrets.token_bytes(600) for _ in range(8)]
    done = together(8, lambda at: world.piece(some[at][:10], 0, 600, some[at]))
    assert sorted(map(str, map(type, done))) == sorted([str(int)] + [str(QuotaExceeded)] * 7)
    assert world.used() == 600


def test_of_an_upload_that_nobody_goes_on_with_what_has_arrived_counts(world: World) -> None:
    whole = secrets.token_bytes(900)
    world.piece(whole[:300], 0, 900, whole)
    world.controller.step()
    assert world.used() == 900
    world.clock.at += 2 * HOUR
    world.controller.step()
    assert world.used() == 300
    world.piece(whole[300:], 300, 900, whole)
    assert world.used() == world.blobs.stored_bytes("default") == 900
    wrong = secrets.token_bytes(50)
    world.piece(wrong[:10], 0, 50, wrong)
    with pytest.raises(InvalidRequest):
        world.piece(bytes(40), 10, 50, wrong)
    assert world.used() == 900


def test_of_many_uploads_that_nobody_goes_on_with_all_are_looked_at(world: World) -> None:
    world.look()
    for _ in range(counts.AT_ONCE + 1):
        whole = secrets.token_bytes(90)
        world.piece(whole[:10], 0, 90, whole)
    world.clock.at += 2 * HOUR
    world.look()
    assert world.used() == 10 * (counts.AT_ONCE + 1)


def test_no_piece_of_an_upload_makes_it_count_less_than_has_arrived(world: World) -> None:
    world.limit("default")
    whole = secrets.token_bytes(900)
    world.piece(whole[:300], 0, 950, whole)  # its whole size was not known yet
    with pytest.raises(Conflict, match="300 bytes have arrived"):
        world.piece(b"", 0, 0, whole)
    assert world.used() == 950
    with pytest.raises(QuotaExceeded):
        world.send(b"x" * 51)
    world.piece(whole[300:], 300, 900, whole)
    assert world.used() == world.blobs.stored_bytes("default") == 900


# what was miscounted


def test_what_was_there_before_anything_was_counted_is_counted(world: World) -> None:
    world.blobs.put_many("other", [(address_of(b"old"), b"old")])
    world.controller.step()
    assert (world.used("other"), world.used()) == (3, 0)
    world.send(b"new", project="other")
    assert world.used("other") == 6


def test_what_was_counted_and_never_stored_is_taken_back_once_nothing_is_stored(world: World) -> None:
    world.controller.step()
    world.send(b"there")
    world.database.write(lambda tx: counts.add_blobs(tx, "default", 1000, world.clock.now()))  # and killed
    world.clock.at += 60 * SECOND
    world.start()
    world.controller.step()
    assert world.used() == 1005  # it may be an upload that goes on
    world.clock.at += HOUR
    world.controller.step()
    assert world.used() == 5
    # each day once more
    world.database.write(lambda tx: counts.add_blobs(tx, "default", 1000, world.clock.now()))
    world.clock.at += HOUR
    world.controller.step()
    assert world.used() == 1005
    world.clock.at += DAY
    world.controller.step()
    assert world.used() == 5


class Slow(LocalBlobs):
    """Blobs that take so long to be counted that something is stored meanwhile."""

    meanwhile: Callable[[], object] = staticmethod(lambda: None)

    def stored_bytes(self, project: str) -> int:
        found = super().stored_bytes(project)
        self.meanwhile()
        return found


def test_what_is_stored_while_blobs_are_counted_is_not_lost(database: Database, tmp_path: Path) -> None:
    slow = Slow(tmp_path / "blobs")
    world = World(database, tmp_path / "blobs", slow)
    world.send(b"there")
    world.clock.at += HOUR
    slow.meanwhile = lambda: world.send(b"meanwhile")
    world.controller.step()
    assert world.used() == len(b"there" + b"meanwhile")


def test_what_takes_long_to_be_stored_is_counted_again_when_it_is(world: World) -> None:
    with stored.results(world.database, world.clock, "default", 200) as storing:
        world.clock.at += HOUR
        world.look()  # nothing of it is there yet
        storing.new_bytes = world.blobs.put("default", address_of(b"r" * 200), io.BytesIO(b"r" * 200))[1]
    world.clock.at += HOUR
    world.look()
    assert world.used() == 200


# checkpoints


def attempt_of(world: World, job: Job, **fields: Any) -> Any:
    attempt = make_attempt(job, **fields)

    def work(tx: Transaction) -> None:
        JOBS.add(tx, job)
        ATTEMPTS.add(tx, attempt)

    world.database.write(work)
    return attempt


def test_checkpoints_count_while_their_job_runs_and_afterwards(world: World) -> None:
    job = make_job(Ids()())
    attempt = attempt_of(world, job, state=AttemptState.RUNNING)
    for size in (100, 300, 200):
        world.files.sizes[job.id] = size
        world.clock.at += 60 * SECOND
        world.controller.step()
        assert world.used() == size
    world.send(b"1")
    over = attempt.moved(AttemptState.ENDED, now=NOW, reason=Reason.COMPLETED).model_copy(update={"collected": True})
    world.database.write(lambda tx: ATTEMPTS.put(tx, attempt, over))
    world.files.sizes[job.id] = 250
    world.clock.at += DAY
    world.controller.step()
    assert world.used() == 251


def test_checkpoints_that_were_removed_with_their_folder_count_no_more(world: World) -> None:
    job = ended(make_job(Ids()()))
    attempt_of(world, job, state=AttemptState.ENDED, collected=True)
    world.files.sizes[job.id] = 100
    world.look()
    assert world.used() == 100
    del world.files.sizes[job.id]
    world.clock.at += DAY
    world.look()
    assert world.used() == 0


def test_running_jobs_checkpoints_are_not_counted_for_each_look_at_something_else(world: World) -> None:
    some = [make_project(f"more-{at}", 2 + at) for at in range(3 * counts.AT_ONCE)]
    world.database.write(lambda tx: PROJECTS.add_all(tx, some))
    job = make_job(Ids()())
    attempt_of(world, job, state=AttemptState.RUNNING)
    world.files.sizes[job.id] = 100
    world.look()
    assert world.files.looks == 2  # with those of all jobs, and as it runs


def test_what_was_counted_while_somebody_looked_is_not_replaced_by_what_he_saw(world: World) -> None:
    job = ended(make_job(Ids()()))
    attempt_of(world, job, state=AttemptState.ENDED, collected=True)
    world.files.sizes[job.id] = 100
    world.files.meanwhile = lambda: world.database.write(lambda tx: stored.checkpoints(tx, job, 300, NOW))
    world.look()
    assert world.used() == 300


def test_a_jobs_and_its_retrys_checkpoints_are_the_same_ones(world: World) -> None:
    ids = Ids()
    first = make_job(ids())
    attempt_of(world, ended(first), state=AttemptState.ENDED)
    again = make_job(ids(), checkpoint_owner=first.id, name="again")
    attempt_of(world, again, state=AttemptState.RUNNING)
    world.files.sizes[first.id] = 100
    world.controller.step()
    assert world.used() == 100


def test_what_a_group_limits_is_what_all_below_it_store(world: World) -> None:
    world.limit("company", 100, group=True)
    world.limit("team", None, group=True, parent="company")
    world.limit("default", None, parent="team")
    world.limit("other", None, parent="company")
    world.send(b"d" * 60)
    world.send(b"o" * 30, project="other")
    with pytest.raises(
        QuotaExceeded, match="of group company is 100B of storage, of which the projects below it have used 90B"
    ):
        world.send(b"more bytes!", project="other")
    used = {one.quota.id: one.used for one in quotas.list(world.call(), Paging()).items}
    assert used == {"company": {STORAGE: 90}, "team": {STORAGE: 60}, "default": {STORAGE: 60}, "other": {STORAGE: 30}}
    world.limit("other", None, parent="")
    assert world.send(b"more bytes!", project="other") == 11


def test_what_is_stored_is_limited_and_not_guaranteed(world: World) -> None:
    with pytest.raises(ValueError, match="storage cannot be guaranteed, only limited"):
        QuotaChange(guarantee={STORAGE: "1TiB"})
