from __future__ import annotations

import errno
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sanakit.data.units import (
    MARK,
    LocalEngine,
    fingerprint,
    finish_unit,
    read_mark,
    run_stage,
)
from sanakit.errors import DataError
from sanakit.files import sha256_of


@dataclass(frozen=True)
class Doubling:
    """Writes a number twice; ``version`` stands for its settings, ``broken`` for a bad unit."""

    folder: Path
    version: int = 1
    broken: str = ""
    full: str = ""
    killed: str = ""
    closed: bool = False

    def made_from(self, unit: str) -> str:
        return fingerprint(self.version, unit)

    def open(self) -> None:
        if self.closed:
            raise DataError("the model is missing")

    def process(self, unit: str, staging: Path) -> dict[str, Any]:
        (staging / f"{unit}.txt").write_text(str(2 * int(unit) * self.version))
        if unit == self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        if unit == self.killed:
            os.kill(os.getpid(), signal.SIGKILL)
        if unit == self.broken:
            raise DataError(f"unit {unit} is broken")
        (staging / f"{unit}.extra").write_bytes(b"")
        return {"value": int(unit)}


UNITS = ["00001", "00002", "00003"]
QUIET = LocalEngine()


def run(stage: Doubling, workers: int = 1) -> dict[str, Any]:
    return dict(
        run_stage(stage, UNITS, engine=LocalEngine(workers=workers), report=lambda line: None)
    )


def listing(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in sorted(folder.iterdir())}


def test_every_unit_has_a_mark_that_names_its_files_with_their_hashes(
    tmp_path: Path,
) -> None:
    marks = run(Doubling(tmp_path))
    assert list(marks) == UNITS
    for unit, mark in marks.items():
        assert mark.fresh
        assert mark.stats == {"value": int(unit)}
        assert {name: sha256_of(tmp_path / name) for name in mark.files} == {
            name: digest for name, (_, digest) in mark.files.items()
        }
        assert (tmp_path / f"{unit}.txt").read_text() == str(2 * int(unit))


def test_finished_units_are_not_computed_again(tmp_path: Path) -> None:
    run(Doubling(tmp_path))
    before = listing(tmp_path)
    marks = run(Doubling(tmp_path, broken="00002"))
    assert not any(mark.fresh for mark in marks.values())
    assert listing(tmp_path) == before


def test_other_settings_make_every_unit_again(tmp_path: Path) -> None:
    run(Doubling(tmp_path))
    marks = run(Doubling(tmp_path, version=2))
    assert all(mark.fresh for mark in marks.values())
    assert (tmp_path / "00003.txt").read_text() == "12"


@pytest.mark.parametrize("harm", ["short", "gone", "mark gone", "mark torn", "mark of another"])
def test_a_unit_that_is_not_whole_is_made_again(tmp_path: Path, harm: str) -> None:
    run(Doubling(tmp_path))
    before = listing(tmp_path)
    file, mark = tmp_path / "00002.txt", tmp_path / f"00002{MARK}"
    if harm == "short":
        file.write_bytes(b"")
    elif harm == "gone":
        file.unlink()
    elif harm == "mark gone":
        mark.unlink()
    elif harm == "mark torn":
        mark.write_text(mark.read_text()[:30])
    else:
        mark.write_text((tmp_path / f"00001{MARK}").read_text())
    marks = run(Doubling(tmp_path))
    assert [unit for unit, one in marks.items() if one.fresh] == ["00002"]
    assert listing(tmp_path) == before


@pytest.mark.parametrize("workers", [1, 2])
def test_a_unit_that_fails_leaves_nothing_and_spares_finished_ones(
    tmp_path: Path, workers: int
) -> None:
    with pytest.raises(DataError, match="unit 00002 is broken"):
        run(Doubling(tmp_path, broken="00002"), workers)
    assert not list(tmp_path.glob("00002*"))
    assert not list(tmp_path.glob(".*"))
    run(Doubling(tmp_path), workers)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"{unit}{ending}" for unit in UNITS for ending in (".txt", ".extra", MARK)
    )


def test_a_full_disk_is_named_and_leaves_no_part_of_the_unit(
    tmp_path: Path,
) -> None:
    with pytest.raises(DataError, match="No space left") as raised:
        run(Doubling(tmp_path, full="00003"))
    assert "make room" in raised.value.hint
    assert read_mark(tmp_path, "00003") is None
    assert not list(tmp_path.glob("00003*"))
    assert read_mark(tmp_path, "00001") is not None


def test_what_a_killed_run_left_is_cleared_away(tmp_path: Path) -> None:
    left = tmp_path / ".unfinished-00002"
    left.mkdir()
    (left / "00002.txt").write_text("half")
    run(Doubling(tmp_path))
    assert not left.exists()
    assert (tmp_path / "00002.txt").read_text() == "4"


def test_the_old_mark_is_gone_before_a_file_of_the_unit_is_replaced(tmp_path: Path) -> None:
    run(Doubling(tmp_path))

    class Watching(Doubling):
        def process(self, unit: str, staging: Path) -> dict[str, Any]:
            assert not (tmp_path / f"{unit}{MARK}").exists()
            return super().process(unit, staging)

    finish_unit(Watching(tmp_path, version=2), "00001")


def test_processes_give_the_same_files_as_one(tmp_path: Path) -> None:
    for name, workers in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        run(Doubling(tmp_path / name), workers)
    assert listing(tmp_path / "one") == listing(tmp_path / "two")


def test_a_fingerprint_tells_values_apart_and_knows_no_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint(json.loads('{"b": 2, "a": 1}'))
    assert fingerprint("a", "bc") != fingerprint("ab", "c")
    assert fingerprint("\ud800") != fingerprint("?")


def test_a_worker_that_is_killed_ends_the_run_and_the_next_one_goes_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"was killed\n.*fewer --workers"):
        run(Doubling(tmp_path, killed="00002"), workers=2)
    marks = run(Doubling(tmp_path), workers=2)
    assert list(marks) == UNITS
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_stage_cannot_open_is_said_in_its_own_words(tmp_path: Path, workers: int) -> None:
    with pytest.raises(DataError, match="the model is missing"):
        run(Doubling(tmp_path, closed=True), workers)
