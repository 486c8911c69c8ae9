"""Checkpoints: the newest whole one is found, a broken one is set aside, nothing is ever deleted."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.runner import checkpoints
from danlu.runner.checkpoints import Seals, candidates, probe
from tests.factories import NOW, SECOND

ATTEMPT = "attempt-1"


def npy(values: int = 100, descr: str = "<f8", item: int = 8) -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': ({values},), }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\x01" * (values * item)


def zipped(compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("weights.npy", bytes(range(256)) * 20)
        archive.writestr("bias.npy", b"\x02" * 50)
    return file.getvalue()


def safetensors(size: int = 64) -> bytes:
    header = json.dumps(
        {"__metadata__": {}, "w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}
    ).encode()
    return struct.pack("<Q", len(header)) + header + b"\x03" * size


def hdf5(version: int) -> bytes:
    data = bytearray(b"\x89HDF\r\n\x1a\n" + bytes([version]) + b"\0" * 300)
    at = {0: 40, 1: 44, 2: 28, 3: 28}[version]
    data[at : at + 8] = struct.pack("<Q", len(data))
    return bytes(data)


SOUND = {
    "a.npz": zipped(),
    "b.npz": zipped(zipfile.ZIP_DEFLATED),
    "a.keras": zipped(),
    "a.pt": zipped(),
    "a.ckpt": zipped(),
    "a.npy": npy(),
    "text.npy": npy(10, "<U5", 20),
    "a.safetensors": safetensors(),
    "v0.h5": hdf5(0),
    "v1.h5": hdf5(1),
    "v2.hdf5": hdf5(2),
    "v3.h5": hdf5(3),
    "a.json": b'{"step": 3, "w": [1.5, NaN]}',
    "a.pkl": pickle.dumps({"step": 3, "w": [1.5] * 50}),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_whole_file_is_sound(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(SOUND[name])
    assert probe(str(tmp_path / name)) is True
    assert probe(str(tmp_path / name), deep=False) is True


@pytest.mark.parametrize("name", SOUND)
def test_a_file_that_was_cut_anywhere_is_not(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for cut in sorted({0, 1, 5, 9, 20, 60, len(SOUND[name]) // 2, len(SOUND[name]) - 1}):
        if cut < len(SOUND[name]):
            path.write_bytes(SOUND[name][:cut])
            assert probe(str(path)) is not True, cut
            if not name.endswith((".pt", ".ckpt")) or not cut:  # without its beginning it may be of another format
                assert probe(str(path)) is False, cut


def test_a_damaged_archive_is_not_sound(tmp_path: Path) -> None:
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        data = bytearray(zipped(compression))
        data[60:70] = b"\xff" * 10
        (tmp_path / "a.npz").write_bytes(data)
        assert probe(str(tmp_path / "a.npz")) is False


@given(st.sampled_from(sorted(SOUND)), st.binary(max_size=200), st.integers(0, 200))
def test_any_bytes_can_be_looked_at(tmp_path_factory: pytest.TempPathFactory, name: str, junk: bytes, at: int) -> None:
    path = tmp_path_factory.getbasetemp() / f"junk-{name}"
    path.write_bytes(SOUND[name][:at] + junk + SOUND[name][at + len(junk) :])
    assert probe(str(path)) in (True, False, None)


@pytest.mark.parametrize("content", [b"[" * 200_000, b"\x80", b'"\xff"', b"{"])
def test_odd_json_is_not_sound(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    assert probe(str(tmp_path / "a.json")) is False


@pytest.mark.parametrize(("name", "content"), [
    ("model.bin", b"whatever"), ("weights", b"x"), ("a.joblib", b"\x78\x9ccompressed"), ("DONE", b""), ("a.txt", b""),
    ("legacy.pt", b"\x80\x02"), ("old.pkl", b"(dp0\nI1"), ("objects.npz.bak", b"x"),
])  # fmt: skip
def test_what_has_no_known_format_is_left_alone(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert probe(str(tmp_path / name)) is None
    assert Seals(str(tmp_path)).settle(ATTEMPT).set_aside == []
    assert (tmp_path / name).read_bytes() == content


def test_several_arrays_in_one_file_are_sound(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(npy() + npy())
    assert probe(str(tmp_path / "a.npy")) is True


class Folder:
    """A checkpoint folder over several attempts; the time is told."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now = NOW
        self.seals = Seals(str(path))

    def save(self, name: str, data: bytes | None = None) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(SOUND["a.npz"] if data is None else data)
        self.now += SECOND
        os.utime(path, ns=(self.now, self.now))

    def watch(self, seconds: float = 3) -> None:
        self.seals.watch(self.now)
        self.now += int(seconds * SECOND)
        self.seals.watch(self.now)

    def attempt(self) -> str | None:
        """Begins the next attempt; returns the name of what it resumes from."""
        self.seals = Seals(str(self.path))
        newest = self.seals.settle(ATTEMPT).newest
        return None if newest is None else os.path.relpath(newest, self.path)

    def aside(self) -> list[str]:
        return sorted(
            path.name.partition("-")[2] for path in (self.path / ".danlu" / "incomplete").rglob("*-*") if path.is_file()
        )


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_a_first_attempt_has_nothing_to_resume_from(folder: Folder) -> None:
    assert folder.attempt() is None
    assert not (folder.path / ".danlu").exists()


def test_a_folder_that_is_not_there_has_none(tmp_path: Path) -> None:
    seals = Seals(str(tmp_path / "absent"))
    seals.watch(NOW)
    assert seals.settle(ATTEMPT) == (None, [])


def test_the_newest_whole_one_is_found_and_a_broken_one_set_aside(folder: Folder) -> None:
    folder.save("ckpt-9.npz")
    folder.save("ckpt-10.npz")
    folder.save("ckpt-11.npz", SOUND["a.npz"][:-30])
    assert folder.attempt() == "ckpt-10.npz"
    assert folder.aside() == ["ckpt-11.npz"]
    assert not (folder.path / "ckpt-11.npz").exists()


def test_what_was_set_aside_is_never_overwritten(folder: Folder) -> None:
    for round in range(3):
        folder.save("a.json", b"{" * (round + 1))
        assert folder.attempt() is None
    assert folder.aside() == ["a.json"] * 3


@pytest.mark.parametrize(("names", "newest"), [
    (["ckpt-2.npz", "ckpt-10.npz", "ckpt-9.npz"], "ckpt-10.npz"),
    (["step_100.pt", "step_99.pt"], "step_100.pt"),
    (["model-10.h5", "model-9.h5"], "model-10.h5"),
    (["best.npz", "ckpt-10.npz", "ckpt-9.npz"], "ckpt-9.npz"),
    (["ckpt-9.npz", "ckpt-10.npz", "latest.npz"], "latest.npz"),
    (["weights.01-0.95.keras", "weights.02-0.11.keras"], "weights.02-0.11.keras"),
    (["epoch=9-step=10.ckpt", "epoch=10-step=5.ckpt"], "epoch=10-step=5.ckpt"),
    (["a", "b"], "b"),
])  # fmt: skip
def test_newest_is_by_number_in_one_series_and_by_time_otherwise(folder: Folder, names: list[str], newest: str) -> None:
    for name in names:
        folder.save(name, hdf5(0) if name.endswith(".h5") else None)
    folder.watch()
    assert folder.attempt() == newest


def test_a_file_that_is_written_again_is_newest(folder: Folder) -> None:
    folder.save("best.npz")
    folder.save("last.npz")
    folder.save("best.npz")
    folder.watch()
    assert folder.attempt() == "best.npz"


@pytest.mark.parametrize(
    "name", ["a.npz.tmp", "a.part", ".hidden.npz", "checkpoint", "a.tempstate123", "x.incomplete", ".danlu"]
)
def test_what_is_no_checkpoint_is_left_alone(folder: Folder, name: str) -> None:
    folder.save(name, b"")
    folder.watch()
    assert folder.attempt() is None
    assert (folder.path / name).exists()


def test_an_unknown_format_counts_once_it_stood_still(folder: Folder) -> None:
    folder.save("model-1.bin", b"x")
    folder.watch(1)
    assert folder.attempt() is None
    folder.save("model-2.bin", b"xx")
    folder.watch()
    assert folder.attempt() == "model-2.bin"
    folder.save("model-2.bin", b"torn")
    assert folder.attempt() is None


def test_what_a_killed_attempt_left_unproven_is_not_believed_later(folder: Folder) -> None:
    folder.save("old.bin", b"half")
    assert folder.attempt() is None
    folder.watch(100)
    assert folder.seals.settle(ATTEMPT, trusted=True).newest is None
    folder.save("old.bin", b"whole")
    folder.watch()
    assert folder.attempt() == "old.bin"


def test_what_a_program_left_that_ended_by_itself_is_believed(folder: Folder) -> None:
    folder.attempt()
    folder.save("model.bin", b"x")
    assert folder.seals.settle(ATTEMPT, trusted=True).newest == str(folder.path / "model.bin")


def test_what_a_failed_task_may_have_been_writing_is_not_believed_for_standing_still(folder: Folder) -> None:
    folder.save("step-4/weights.bin", b"whole")
    folder.watch()
    folder.save("step-5/rank-0.bin", b"half")
    (folder.path / "step-6").mkdir()
    folder.seals.doubt()
    folder.save("step-5/rank-1.bin", b"another task's part")
    folder.save("step-6/rank-1.bin", b"another task's part")
    folder.watch(100)
    assert folder.seals.settle(ATTEMPT, trusted=True).newest == str(folder.path / "step-4")
    assert folder.aside() == []
    for rank in (0, 1):
        folder.save(f"step-5/rank-{rank}.bin", b"whole")
    folder.watch()
    assert folder.seals.newest() == str(folder.path / "step-5")


def test_a_whole_checkpoint_that_is_in_doubt_is_believed_for_its_structure_at_the_end(folder: Folder) -> None:
    folder.save("ckpt-1.npz")
    folder.seals.doubt()
    folder.watch(100)
    assert folder.seals.newest() is None
    assert folder.seals.settle(ATTEMPT).newest == str(folder.path / "ckpt-1.npz")


def test_a_folder_is_one_checkpoint(folder: Folder) -> None:
    for name in ("step-1/model.safetensors", "step-1/deep/optimizer.pt", "step-1/_SUCCESS"):
        folder.save(name, safetensors() if name.endswith("s") and "_" not in name else b"" if "_S" in name else None)
    folder.watch()
    folder.save("step-2/model.safetensors", safetensors())
    assert folder.attempt() == "step-1"  # of the other it is not known whether all of it is there
    assert folder.aside() == []
    folder.save("step-3/model.safetensors", safetensors()[:-1])
    assert folder.attempt() == "step-1"
    assert not (folder.path / "step-3").exists()
    assert folder.aside() == ["model.safetensors"] or (folder.path / ".danlu" / "incomplete").exists()


def test_an_empty_folder_is_no_checkpoint(folder: Folder) -> None:
    (folder.path / "empty").mkdir()
    folder.watch()
    assert folder.attempt() is None
    assert (folder.path / "empty").exists()


def test_tensorflow_writes_several_files(folder: Folder) -> None:
    for step in (100, 200):
        folder.save(f"model.ckpt-{step}.data-00000-of-00002", b"x")
        folder.save(f"model.ckpt-{step}.data-00001-of-00002", b"y")
        folder.save(f"model.ckpt-{step}.index", b"i")
        folder.save(f"model.ckpt-{step}.meta", b"m")
    folder.save("checkpoint", b'model_checkpoint_path: "model.ckpt-200"')
    assert {"model.ckpt-100", "model.ckpt-200"} <= candidates(str(folder.path)).keys()
    folder.watch()
    folder.save("model.ckpt-300.data-00000-of-00002", b"x")
    folder.save("model.ckpt-300.index", b"i")
    newest = folder.attempt()
    assert newest is not None
    assert newest.startswith("model.ckpt-200")
    assert folder.aside() == ["model.ckpt-300.data-00000-of-00002", "model.ckpt-300.index"]


def test_links_pipes_and_devices_are_passed_over(folder: Folder) -> None:
    folder.save("ckpt-1.npz")
    (folder.path / "latest.npz").symlink_to("ckpt-1.npz")
    (folder.path / "shadow.json").symlink_to("/etc/shadow")
    os.mkfifo(folder.path / "pipe.json")
    (folder.path / "deep-2").mkdir()
    os.mkfifo(folder.path / "deep-2" / "pipe.npz")
    (folder.path / "deep-2" / "zero.json").symlink_to("/dev/zero")
    folder.watch()
    assert folder.attempt() == "ckpt-1.npz"
    assert folder.aside() == []
    assert (folder.path / "shadow.json").is_symlink()


def test_of_very_many_the_newest_are_looked_at(folder: Folder) -> None:
    for number in range(checkpoints.MAX_ENTRIES * 3):
        (folder.path / f"ckpt-{number}.json").write_bytes(b"{}")
    assert len(candidates(str(folder.path))) <= checkpoints.MAX_ENTRIES
    assert folder.attempt() == f"ckpt-{checkpoints.MAX_ENTRIES * 3 - 1}.json"


def test_a_very_large_folder_is_bounded(folder: Folder) -> None:
    (folder.path / "deep").mkdir()
    for number in range(checkpoints.MAX_FILES + 10):
        (folder.path / "deep" / str(number)).touch()
    folder.watch()
    assert folder.attempt() is None


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b'{"ckpt-1.npz": 3}', b'{"ckpt-1.npz": [[1]]}', b"[" * 200_000, b"\xff"]
)
def test_seals_that_were_damaged_are_made_again(folder: Folder, content: bytes) -> None:
    folder.save("ckpt-1.npz")
    folder.save(".danlu/sealed.json", content)
    assert folder.attempt() == "ckpt-1.npz"


def test_seals_that_cannot_be_written_stop_nothing(folder: Folder, small_disk: Callable[[int], Path]) -> None:
    disk = Folder(small_disk(128 * 1024))
    disk.save("ckpt-1.npz")
    with pytest.raises(OSError, match="No space"):
        disk.save("ballast.tmp", b"x" * 2**20)
    disk.watch()
    assert disk.seals.settle(ATTEMPT).newest == str(disk.path / "ckpt-1.npz")


def test_a_file_in_the_place_of_the_seals_stops_nothing(folder: Folder) -> None:
    folder.save(".danlu", b"a file")
    folder.save("ckpt-2.npz")
    folder.watch()
    assert folder.seals.newest() == str(folder.path / "ckpt-2.npz")


def test_names_of_any_kind_can_be_checkpoints(folder: Folder) -> None:
    for name in ("a b\nc-1.npz", "-rf.npz", "ü%s{}.npz", "9" * 240 + ".npz", "²-³.npz"):
        folder.save(name)
    folder.watch()
    assert folder.attempt() is not None
    assert folder.aside() == []
