"""A training that is killed in the midst of a save, or whose disk is full, loses nothing saved."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sanakit.errors import DataError
from sanakit.train.checkpoint import checkpoints, what_is_wrong
from sanakit.train.config import LoopConfig
from sanakit.train.loop import train
from sanakit.train.runs.log import read_log
from tiny_recipe import TinyRecipe

ROOT = Path(__file__).parents[2]
CONFIG = LoopConfig(
    batch_size=4,
    total_images=32,
    peak_lr=1e-3,
    compute_dtype="float32",
    device="cpu",
    save_minutes=1e-9,
    log_every=1,
)


def kill(*options: str) -> dict[str, Any]:
    """What the benchmark of that name counts."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.kill_training", *options],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        cwd=ROOT,
    )
    assert done.stdout, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert result["lost"] == 0, done.stdout
    return result


def test_a_run_that_is_killed_while_it_saves_goes_on_from_its_last_save_to_the_same_end() -> None:
    result = kill("--points", "8")
    # Fewer would mean that nothing was killed, or that the hook sees nothing.
    assert result["killed"] >= 4
    assert min(result["changes"].values()) >= 15


def test_a_rank_that_is_killed_ends_the_other_and_both_or_one_go_on_from_their_last_save() -> None:
    result = kill("--points", "8", "--ranks", "2")
    assert result["killed"] >= 4
    # Copies and shards, the rank that writes everything and the one that writes its part.
    assert len(result["changes"]) == 4
    assert min(result["changes"].values()) >= 15
    assert max(result["last_saves"]) > 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    command = [mount or "", "-t", "tmpfs", "-o", "size=1m", "none", str(place)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only a superuser can mount a small disk")
    yield place
    subprocess.run(["umount", place], check=True)


def fill(file: Path) -> None:
    with file.open("wb", buffering=0) as filler:
        for size in (4096, 1):
            try:
                while filler.write(b"x" * size):
                    pass
            except OSError:
                continue


@pytest.mark.parametrize("background", [False, True])
def test_a_run_whose_disk_is_full_says_so_keeps_its_checkpoints_and_saves_once_there_is_room(
    small_disk: Path, background: bool
) -> None:
    filler, run, told = small_disk / "filler", small_disk / "run", list[str]()

    def watch(count: int) -> None:
        if count == 4:
            fill(filler)
        if count == 6:
            before.extend(what_is_wrong(path) for path in checkpoints(run))
            filler.unlink()

    before = list[str | None]()
    config = replace(CONFIG, async_save=background)
    assert train(TinyRecipe(watch), config, run, resume=False, report=told.append)
    assert any(line.startswith("could not save at") and "No space left" in line for line in told)
    assert before
    assert set(before) == {None}
    assert checkpoints(run)[-1].name == "checkpoint-0000000032"
    assert what_is_wrong(checkpoints(run)[-1]) is None


def test_a_run_whose_disk_stays_full_ends_with_an_error_and_can_be_resumed(
    small_disk: Path,
) -> None:
    filler, run, told = small_disk / "filler", small_disk / "run", list[str]()

    def watch(count: int) -> None:
        # What the log has left of its last page would hold lines to come.
        if count == 4:
            with (run / "log.jsonl").open("a") as log:
                log.write("\n" * (4096 - log.tell() % 4096))
            fill(filler)

    with pytest.raises(DataError, match=r"last checkpoint could not be written: .*No space left"):
        train(TinyRecipe(watch), CONFIG, run, resume=False, report=told.append)
    assert any(line.startswith("could not log: ") for line in told)
    assert any(line.startswith("images 32 ") for line in told)
    kept = checkpoints(run)
    assert kept
    assert [what_is_wrong(path) for path in kept] == [None] * len(kept)
    filler.unlink()
    assert train(TinyRecipe(), CONFIG, run, resume=True, report=told.append)
    images = int(kept[-1].name.removeprefix("checkpoint-"))
    assert f"resumed at {images} images from {kept[-1].name}" in told
    assert read_log(run)[-1]["images"] == 32
