"""`sanakit edit` as a user types it, on a tiny random model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from command_line import sanakit
from sanakit.cli import edit as verb
from sanakit.pipeline.decoder import Origin, write_latents
from sanakit.pipeline.editing import IMAGE_STRENGTH, MASK_STRENGTH
from sanakit.pipeline.png import read_settings
from tiny_vision_models import write_clip
from zoo import animals

PIXELS = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
KEPT = np.ones((64, 96), bool)
KEPT[10:30, 50:] = False
# The tiny model draws few sizes, all of them small.
pytestmark = pytest.mark.filterwarnings("ignore:the picture is .* and is drawn at")


@pytest.fixture(autouse=True)
def in_a_folder_with_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(PIXELS).save("in.png")
    Image.fromarray(np.where(KEPT, 0, 255).astype(np.uint8)).save("mask.png")


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def edit(model: str, *arguments: object, code: int = 0) -> tuple[str, str]:
    return sanakit(
        "edit", "in.png", "a tree", "--model", model, "--steps", 3, *arguments, code=code
    )


def test_a_picture_becomes_another_and_says_from_which(model: str) -> None:
    out, _ = edit(model)
    assert out.startswith("in-edited.png  seed 0")
    assert pixels("in-edited.png").shape == PIXELS.shape
    settings = read_settings("in-edited.png")
    assert settings["edit"]["image"] == "in.png"
    assert settings["edit"]["strength"] == IMAGE_STRENGTH
    assert "in.png" in sanakit("info", "in-edited.png")[0]
    edit(model, "--strength", "1", "-o", "far.png")
    assert (pixels("far.png") != pixels("in-edited.png")).any()


def test_what_the_mask_keeps_is_the_picture(model: str) -> None:
    edit(model, "--mask", "mask.png", "-o", "out.png")
    drawn = pixels("out.png")
    np.testing.assert_array_equal(drawn[KEPT], PIXELS[KEPT])
    assert (drawn[~KEPT] != PIXELS[~KEPT]).any()
    assert read_settings("out.png")["edit"]["strength"] == MASK_STRENGTH


@pytest.mark.parametrize(
    ("typed", "sides"), [("32", (32, 32, 32, 32)), ("0,3,40,0", (0, 3, 40, 0))]
)
def test_a_canvas_grows(typed: str, sides: tuple[int, int, int, int], model: str) -> None:
    edit(model, "--expand", typed, "-o", "out.png")
    left, top, right, bottom = sides
    grown = pixels("out.png")
    assert grown.shape == (64 + top + bottom, 96 + left + right, 3)
    np.testing.assert_array_equal(grown[top : top + 64, left : left + 96], PIXELS)


@pytest.mark.parametrize(
    "more", [(), ("--mask", "mask.png", "--expand", "0,0,32,0"), ("--width", 64, "--height", 64)]
)
def test_again_draws_the_same_bits(more: tuple[object, ...], model: str) -> None:
    edit(model, "-o", "out.png", "--seed", 5, "-n", 2, *more)
    for name in ("out-5", "out-6"):
        sanakit("again", f"{name}.png", "-q")
        assert Path(f"{name}.png").read_bytes() == Path(f"{name}-again.png").read_bytes()


@pytest.mark.parametrize("name", ["in.png", "mask.png"])
def test_again_wants_the_files_that_were_edited(name: str, model: str) -> None:
    edit(model, "--mask", "mask.png", "-o", "out.png")
    Image.fromarray(np.zeros_like(PIXELS)).save(name)
    _, err = sanakit("again", "out.png", code=2)
    assert f"{name}: is not the file that it was" in err
    Path(name).unlink()
    _, err = sanakit("again", "out.png", code=2)
    assert f"{name}: cannot be read" in err
    assert not Path("out-again.png").exists()


@pytest.mark.parametrize(
    "change", [{"strength": 0}, {"strength": "x"}, {"expand": [1]}, {"image": 3}, {"size": 1}]
)
def test_settings_of_others_are_refused_in_one_line(change: dict, model: str) -> None:
    from sanakit.pipeline.png import encode_png

    edit(model, "-o", "out.png")
    settings = read_settings("out.png")
    settings["edit"] |= change
    Path("odd.png").write_bytes(encode_png(PIXELS, settings))
    _, err = sanakit("again", "odd.png", code=2)
    assert next(iter(change)) in err


def test_what_is_edited_is_overwritten_only_when_told(model: str) -> None:
    before = Path("in.png").read_bytes()
    for name in ("in.png", "./in.png", "mask.png"):
        _, err = edit(model, "-o", name, "--mask", "mask.png", code=2)
        assert "is what is edited" in err
    Path("in-4.png").write_bytes(before)
    command = ("edit", "in-4.png", "a tree", "-o", "in.png", "-n", 2, "--seed", 3)
    assert "in-4.png is what is edited" in sanakit(*command, code=2)[1]
    assert Path("in.png").read_bytes() == Path("in-4.png").read_bytes() == before
    edit(model, "-o", "in.png", "--overwrite")
    assert Path("in.png").read_bytes() != before


REFUSED = {
    "no strength": (("--strength", "0"), "--strength 0 must be"),
    "too much": (("--strength", "1.2"), "--strength 1.2 must be"),
    "nan": (("--strength", "nan"), "--strength nan must be"),
    "no step": (("--strength", "0.2"), "leaves no step to run"),
    "three sides": (("--expand", "1,2,3"), "LEFT,TOP,RIGHT,BOTTOM"),
    "a negative side": (("--expand", "0,0,-8,0"), "LEFT,TOP,RIGHT,BOTTOM"),
    "thousands of digits": (("--expand", "9" * 5000), "LEFT,TOP,RIGHT,BOTTOM"),
    "words": (("--expand", "right"), "LEFT,TOP,RIGHT,BOTTOM"),
    "a long canvas": (("--expand", "0,0,20000,0"), "--expand 0,0,20000,0 makes a canvas of 20096"),
    "gigabytes": (("--expand", "8000"), "--expand 8000,8000,8000,8000 makes a canvas of 16096"),
    "no such mask": (("--mask", "none.png"), "none.png: cannot be read"),
    "a mask of another shape": (("--mask", "tall.png"), "the mask is 9 x 60"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_drawn_is_refused_before_torch(
    name: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verb, "draw", lambda *_, **__: pytest.fail("it was drawn"))
    Image.new("L", (9, 60)).save("tall.png")
    options, message = REFUSED[name]
    assert message in edit(model, *options, code=2)[1]


# What each file is taken for is tested where it is read.
ONE_OF_EACH = {animal.reason: animal for animal in animals()}.values()


@pytest.mark.parametrize("animal", ONE_OF_EACH, ids=lambda animal: animal.name)
def test_files_of_any_content_are_taken_or_refused_in_one_line(
    animal: object, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verb, "draw", lambda *_, **__: None)
    Path("in.png").write_bytes(animal.data)
    _, err = edit(model, code=2 if animal.reason else 0)
    assert len([line for line in err.splitlines() if line.startswith("error:")]) == bool(
        animal.reason
    )


def test_a_large_picture_is_told_that_it_is_drawn_smaller(model: str) -> None:
    Image.fromarray(PIXELS).resize((400, 300)).save("in.png")
    with pytest.warns(UserWarning, match="400 x 300 and is drawn at"):
        out, _ = edit(model, "--json")
    assert json.loads(out)["files"] == ["in-edited.png"]
    assert pixels("in-edited.png").shape == (300, 400, 3)


def test_a_mask_that_is_nowhere_white_is_told_of(model: str) -> None:
    Image.new("L", PIXELS.shape[1::-1]).save("mask.png")
    with pytest.warns(UserWarning, match="the mask is black everywhere"):
        edit(model, "--mask", "mask.png", "-o", "out.png")
    np.testing.assert_array_equal(pixels("out.png"), PIXELS)


def test_latents_that_ran_out_of_memory_become_the_edit(model: str) -> None:
    edit(model, "--mask", "mask.png", "-o", "out.png")
    settings = read_settings("out.png")
    latent = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    write_latents(Path("saved.safetensors"), latent, Origin(model=model, settings=(settings,)))
    sanakit("decode", "saved.safetensors", "-o", "late.png", "-q")
    late = pixels("late.png")
    np.testing.assert_array_equal(late[KEPT], PIXELS[KEPT])
    assert (late[~KEPT] != PIXELS[~KEPT]).any()
    Path("mask.png").unlink()
    _, err = sanakit("decode", "saved.safetensors", "-o", "late.png", "-q")
    assert "what was edited is not pasted back: mask.png: cannot be read" in err
    assert pixels("late.png").shape == (64, 64, 3)  # the size was that of the picture, too


def test_of_several_edits_the_best_is_kept(model: str) -> None:
    clip = write_clip(Path("clip"))
    out, _ = edit(model, "--best-of", 3, "--scorer", clip, "--seed", 2, "-o", "best.png", "--json")
    kept = json.loads(out)["seeds"][0]
    edit(model, "-n", 3, "--seed", 2, "-o", "all.png")
    np.testing.assert_array_equal(pixels("best.png"), pixels(f"all-{kept}.png"))
    sanakit("again", "best.png", "-q")
    np.testing.assert_array_equal(pixels("best-again.png"), pixels("best.png"))
    Image.fromarray(PIXELS).save("in-3.png")
    command = ("edit", "in-3.png", "a tree", "-o", "in.png", "-n", 2, "--seed", 1)
    _, err = sanakit(*command, "--best-of", 4, "--scorer", clip, code=2)
    assert "in-3.png is what is edited" in err
