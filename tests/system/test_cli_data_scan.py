"""`sanakit data scan` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

import zoo
from command_line import sanakit
from sanakit.data.training_set import TrainingSet


def folder(path: Path) -> Path:
    path.mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        pixels = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((80 + number, 60), Image.Resampling.BICUBIC)
        (path / f"red_apple-{number}.png").write_bytes(zoo.saved(image, "PNG"))
    (path / "again.jpg").write_bytes(zoo.saved(image, "JPEG", quality=80))
    (path / "broken.jpg").write_bytes(b"<html>not found</html>")
    (path / "moving.gif").write_bytes(
        next(animal.data for animal in zoo.animals() if animal.name == "animated-gif.gif")
    )
    return path


def test_a_folder_is_scanned_and_the_summary_says_what_was_found(tmp_path: Path) -> None:
    source, out = folder(tmp_path / "my pictures"), tmp_path / "set"
    said, _ = sanakit("data", "scan", source, "--out", out, "--workers", 1)
    assert f"{out}: 6 of 9 pictures are in the set" in said
    assert "refused      1 animated, 1 not a picture" in said
    assert "0 with the same bytes, 1 that look the same" in said
    assert "median 60; 6 below 256" in said
    assert str(out / "quarantine.jsonl") in said
    lines = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert {line["reason"] for line in lines} == {"animated", "not a picture", "duplicate picture"}
    assert len(list(TrainingSet.open(out).kept())) == 6
    again, _ = sanakit("data", "scan", source, "--out", out, "--workers", 1)
    assert "1 of 1 units were finished before" in again
    assert again.splitlines()[1:] == said.splitlines()[1:]


def test_its_options_reach_the_scan(tmp_path: Path) -> None:
    source, out = folder(tmp_path / "in"), tmp_path / "set"
    options = ("--keep-duplicates", "--first-frame", "--caption", "a photo of my dog")
    said, _ = sanakit("data", "scan", source, "--out", out, "--workers", 1, *options)
    assert "8 of 9 pictures" in said
    samples = list(TrainingSet.open(out).kept())
    assert {caption.text for one in samples for caption in one.captions} == {"a photo of my dog"}
    few = tmp_path / "few"
    said, _ = sanakit(
        *("data", "scan", source, "--out", few, "--captions", "none", "--min-side", 60),
        *("--near", 0, "--workers", 1),
    )
    assert "7 of 9 pictures" in said
    assert "refused      1 not a picture, 1 too small" in said
    assert "captions     0, 7 pictures have none" in said


def test_a_stop_and_a_wrong_option_are_one_message(tmp_path: Path) -> None:
    source, out = folder(tmp_path / "in"), tmp_path / "set"
    scan = ("data", "scan", source, "--out", out, "--workers", 1)
    _, error = sanakit(*scan, "--max-refused", 0.1, code=2)
    assert error.startswith(f"error: {source}: 2 of 9 pictures are refused (")
    assert "--max-refused 0.23 goes on" in error
    _, error = sanakit(*scan, "--captions", "many", code=2)
    assert error == "error: --captions 'many' is unknown\nhint: one of source, whole, none\n"
    _, error = sanakit(*scan, "--near", 40, code=2)
    assert "near=40 is not from 0 to 8" in error
