"""What is in use now: from the ends of streams alone, of one's own project alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from danlu.blobs.local_streams import LocalStreams
from danlu.blobs.streams import StreamKey
from danlu.database.engine import Database
from danlu.services.top import TAILS_BYTES, newest
from tests.api.edge import Api

KEY = StreamKey("default", "a-1", "main-0", "metrics")


def point(at: int, **values: float) -> bytes:
    named = {name.replace("system_", "system/", 1): value for name, value in values.items()}
    return json.dumps({"t": at, "s": None, "m": named}, separators=(",", ":")).encode() + b"\n"


SAMPLE = point(5, system_cpu_cores=1.5, system_memory_bytes=2**20, system_gpu0_percent=87.0)
LOSS = point(6, loss=0.5)


@pytest.fixture
def api(sqlite: Database, tmp_path: Path) -> Api:
    return Api(sqlite, tmp_path)


@pytest.mark.parametrize("between", [0, 1, 300, 8_000, 100_000])
def test_the_newest_measurement_is_found_behind_what_a_program_logs(tmp_path: Path, between: int) -> None:
    streams = LocalStreams(tmp_path)
    streams.append(KEY, 0, point(4, system_cpu_cores=9) + SAMPLE + LOSS * between + b'{"t":7,"m":{"system/cpu_')
    at, values = newest(streams, KEY)
    assert at == 5
    assert values == {"system/cpu_cores": 1.5, "system/memory_bytes": 2**20, "system/gpu0_percent": 87.0}


def test_no_more_than_the_end_is_read(tmp_path: Path) -> None:
    class Counting(LocalStreams):
        most = 0

        def read(self, key: StreamKey, offset: int, max_bytes: int) -> bytes:
            self.most = max(self.most, max_bytes)
            return super().read(key, offset, max_bytes)

    streams = Counting(tmp_path)
    streams.append(KEY, 0, SAMPLE + LOSS * 400_000)
    assert newest(streams, KEY) == (None, {})
    assert streams.most == TAILS_BYTES[-1]
    assert newest(streams, StreamKey("default", "a-2", "main-0", "metrics")) == (None, {})


@pytest.mark.parametrize(
    "line",
    [
        b'{"t":1,"s":null,"m":{"system/cpu_cores":1,"loss":2}}\n', b'{"m":{"system/x":1}}\n', b'["system/"]\n',
        b'{"t":1,"m":{"a\\"system/":1}}\n', b'{"t":1,"m":{"system/cpu_cores":"x"}}\n',
        b'{"t":1,"m":{"system/cpu_cores":NaN}}\n',
        b'"system/' + b"[" * 5000 + b"\n",
    ],
)  # fmt: skip
def test_what_is_none_is_passed_over(tmp_path: Path, line: bytes) -> None:
    streams = LocalStreams(tmp_path)
    streams.append(KEY, 0, SAMPLE + line)
    assert newest(streams, KEY)[0] == 5


def test_a_project_sees_its_own_jobs_and_everybodys_load(api: Api) -> None:
    api.submit(name="next", cpu=2)
    key = StreamKey("default", api.ids["attempt"], "main-0", "metrics")
    api.platform.streams.append(key, 0, LOSS + SAMPLE)
    mine = api.call("top.get").json()
    (job,) = mine["jobs"]
    (task,) = job["tasks"]
    assert (job["name"], task["cpu_cores"], task["memory_bytes"]) == ("train", 1.5, 2**20)
    assert ([w["name"] for w in mine["waiting"]], mine["waiting_count"]) == (["next"], 1)
    theirs = api.call("top.get", actor="foreign").json()
    assert (theirs["jobs"], theirs["waiting"]) == ([], [])
    assert theirs["nodes"] == mine["nodes"]


def test_metrics_are_the_programs_unless_asked(api: Api) -> None:
    key = StreamKey("default", api.ids["attempt"], "main-0", "metrics")
    flood = b"".join(point(6, **{f"m{n}": 1.0}) for n in range(1100))
    api.platform.streams.append(key, 0, LOSS + flood + SAMPLE)

    def names(query: str = "") -> list[Any]:
        return [series["name"] for series in api.call("jobs.metrics", job="train", query=query).json()["series"]]

    assert not [name for name in names() if name.startswith("system/")]
    assert names("?system=true") == ["system/cpu_cores", "system/gpu0_percent", "system/memory_bytes"]
    assert names("?name=system/cpu_cores") == ["system/cpu_cores"]
    assert names("?name=loss&system=true") == ["loss"]
