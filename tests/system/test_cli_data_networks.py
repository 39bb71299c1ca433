from __future__ import annotations

import json
from pathlib import Path

import pytest

import scanned_set
import tiny
import tiny_vision_models
from command_line import sanakit
from sanakit.data.encode import CachedStates
from sanakit.data.training_set import TrainingSet


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return scanned_set.scanned_set(tmp_path / "set").folder


def test_a_set_is_captioned_scored_and_encoded_from_the_command_line(
    folder: Path, tmp_path: Path
) -> None:
    llava = tiny_vision_models.write_llava(tmp_path / "Tiny Llava")
    blip = tiny_vision_models.write_blip(tmp_path / "blip")
    clip = tiny_vision_models.write_clip(tmp_path / "clip")
    said, _ = sanakit(
        *("data", "caption", folder, "--model", llava, "--model", blip, "--max-tokens", 5),
        *("--prompt", "Say it.", "--prompt", "Which colours?"),
    )
    for name in ("tiny-llava", "tiny-llava-2", "blip", "blip-2"):
        assert f"{name}: 6 captions" in said
    said, _ = sanakit("data", "score", folder, "--model", clip)
    assert "clip: 34 captions scored" in said
    sample = TrainingSet.open(folder).samples("00000")[0]
    assert [caption.captioner for caption in sample.captions[2:]] == [
        *("blip", "blip-2", "tiny-llava", "tiny-llava-2"),
    ]
    assert all(caption.score is not None for caption in sample.captions)

    scanned_set.build(folder)
    sana = tiny.write_tiny(tmp_path / "sana")
    said, _ = sanakit("data", "encode", folder, "--model", sana)
    assert "6 samples, 0 unreadable" in said
    assert "7 captions, 0 cut" in said
    (latents,) = (folder / "latents").iterdir()
    (text,) = (folder / "text").iterdir()
    assert CachedStates(latents, "64x96-00000").latent("plain").shape == (4, 2, 3)
    assert CachedStates(text, "64x96-00000").text("a dog").shape[1] == 8
    before = scanned_set.hashes(folder)
    said, _ = sanakit("data", "encode", folder, "--model", sana)
    assert "2 of 2 units were finished before" in said
    assert scanned_set.hashes(folder) == before


def test_one_of_the_two_is_encoded_where_it_is_asked_for(folder: Path, tmp_path: Path) -> None:
    scanned_set.build(folder)
    sana = tiny.write_tiny(tmp_path / "sana")
    sanakit("data", "encode", folder, "--model", sana, "--what", "text", "--store", "bfloat16")
    assert not (folder / "latents").exists()
    (text,) = (folder / "text").iterdir()
    assert json.loads((text / "null.done.json").read_text())["stats"]["captions"] == 0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["caption", "SET", "--model", "nowhere"], "nowhere: no such folder"),
        (["caption", "SET"], "needs --model"),
        (["caption", "SET", "--model", "x", "--batch-size", "0"], "--batch-size 0 must be"),
        (["caption", "SET", "--model", "x", "--dtype", "float8"], "--dtype 'float8' is unknown"),
        (["caption", "SET", "--model", "x", "--temperature", "-1"], "temperature -1.0 is negative"),
        (["caption", "EMPTY", "--model", "x"], "holds no training set"),
        (["score", "SET", "--model", "glyph"], "glyph: no such folder"),
        (["encode", "SET", "--model", "glyph"], "holds no built shards"),
        (["encode", "SET", "--model", "glyph", "--what", "all"], "--what 'all' is unknown"),
        (["encode", "SET", "--model", "glyph", "--store", "float32"], "--store 'float32'"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    folder: Path, tmp_path: Path, arguments: list[str], error: str
) -> None:
    places = {"SET": str(folder), "EMPTY": str(tmp_path)}
    given = [places.get(each, each) for each in arguments]
    code = 3 if "no such folder" in error else 2
    _, said = sanakit("data", *given, code=code)
    assert error in said


def test_an_engine_that_does_not_exist_is_refused_before_a_model_is_loaded(
    folder: Path, tmp_path: Path
) -> None:
    clip = tiny_vision_models.write_clip(tmp_path / "clip")
    _, said = sanakit("data", "score", folder, "--model", clip, "--engine", "rai", code=2)
    assert "did you mean 'ray'" in said
