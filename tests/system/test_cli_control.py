"""`sanakit generate --control` as a user types it, on a tiny random model with a branch."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from command_line import sanakit
from original_files import original_transformer
from sanakit import (
    AutoPipelineForText2Image,
    SanaControlNetModel,
    SanaControlNetPipeline,
    SanaPipeline,
    SanaTransformer2DModel,
    control_image,
)
from sanakit.cli import options
from sanakit.errors import MissingModelError
from sanakit.pipeline.control_images import KINDS
from sanakit.pipeline.png import read_settings
from tiny import write_tiny

PIXELS = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a branch of it that steers, and the two as one model."""
    where = tmp_path_factory.mktemp("models")
    plain = SanaPipeline.from_pretrained(write_tiny(where / "plain"))
    branch = SanaControlNetModel.from_transformer(plain.transformer, 1)
    torch.manual_seed(0)
    for linear in (branch.input_block, *branch.controlnet_blocks):
        torch.nn.init.normal_(linear.weight, std=0.5)
    branch.save_pretrained(where / "branch")
    whole = SanaControlNetPipeline.from_pipe(plain, controlnet=branch)
    whole.save_pretrained(where / "whole")
    return where


def test_a_pipeline_takes_a_branch_from_where_it_is(models: Path) -> None:
    plain = SanaPipeline.from_pretrained(models / "plain", torch_dtype=torch.bfloat16)
    expected = SanaControlNetModel.from_pretrained(models / "branch", dtype=torch.bfloat16)
    for place in (models / "branch", str(models / "whole")):
        for kind in (SanaControlNetPipeline, AutoPipelineForText2Image):
            made = kind.from_pipe(plain, controlnet=place)
            assert type(made) is SanaControlNetPipeline
            assert made.transformer is plain.transformer
            for found, one in zip(made.controlnet.parameters(), expected.parameters(), strict=True):
                assert found.dtype == torch.bfloat16
                assert torch.equal(found, one)
    with pytest.raises(MissingModelError, match="the control branch nowhere: no such folder"):
        SanaControlNetPipeline.from_pipe(plain, controlnet="nowhere")
    with pytest.raises(MissingModelError, match="the control branch nowhere: no such folder"):
        SanaControlNetPipeline.from_pretrained(models / "plain", controlnet="nowhere")


@pytest.fixture(autouse=True)
def in_a_folder_with_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(PIXELS).resize((96, 64), Image.Resampling.BICUBIC).save("in.png")


def generate(model: Path, *arguments: object, code: int = 0) -> tuple[str, str]:
    return sanakit(
        "generate", "a tree", "--model", model, "--steps", 2, *arguments, "-q", code=code
    )


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_picture_is_followed_by_the_models_own_branch_or_a_named_one(models: Path) -> None:
    generate(models / "whole", "--control", "in.png", "-o", "own.png")
    named = ("--control", "in.png", "--controlnet")
    generate(models / "plain", *named, models / "branch", "-o", "named.png")
    generate(models / "plain", *named, models / "whole", "-o", "inside.png")
    size = ("--width", 96, "--height", 64)
    generate(models / "plain", *size, "-o", "without.png")
    weak = ("--control-scale", 0, *size)
    generate(models / "whole", "--control", "in.png", *weak, "-o", "weak.png")
    assert pixels("own.png").shape == (64, 96, 3)
    assert (pixels("own.png") == pixels("named.png")).all()
    assert (pixels("own.png") == pixels("inside.png")).all()
    assert (pixels("own.png") != pixels("without.png")).any()
    assert (pixels("weak.png") == pixels("without.png")).all()


def test_kinds_are_made_first_and_ready_ones_draw_the_same(models: Path) -> None:
    assert options.CONTROL_KINDS == KINDS
    with Image.open("in.png") as picture:
        control_image(picture, "canny").save("canny.png")
    generate(models / "whole", "--control", "in.png", "--control-kind", "canny", "-o", "a.png")
    generate(models / "whole", "--control", "canny.png", "-o", "b.png")
    generate(models / "whole", "--control", "in.png", "-o", "c.png")
    assert (pixels("a.png") == pixels("b.png")).all()
    assert (pixels("a.png") != pixels("c.png")).any()


def test_again_draws_the_same_bits_and_refuses_another_file(models: Path) -> None:
    typed = ("--control", "in.png", "--control-kind", "scribble", "--control-scale", 0.7)
    generate(models / "plain", *typed, "--controlnet", models / "branch", "-o", "out.png")
    settings = read_settings(Path("out.png"))
    assert settings["control"] | {"image_sha256": ""} == {
        "image": "in.png",
        "image_sha256": "",
        "kind": "scribble",
        "scale": 0.7,
    }
    assert settings["controlnet"] == str(models / "branch")
    assert len(settings["controlnet_hash"]) == 16
    sanakit("again", "out.png", "-q")
    assert (pixels("out-again.png") == pixels("out.png")).all()
    Image.fromarray(255 - PIXELS).save("in.png")
    _, said = sanakit("again", "out.png", "-q", code=2)
    assert "in.png: is not the file that it was" in said
    Path("in.png").unlink()
    _, said = sanakit("again", "out.png", "-q", code=2)
    assert "in.png: cannot be read" in said


def test_an_original_file_is_converted_and_followed(models: Path) -> None:
    config = models / "plain" / "transformer" / "config.json"
    shape = SanaTransformer2DModel.load_config(config.parent)
    transformer = SanaTransformer2DModel.from_config(shape)
    torch.save(original_transformer(transformer.config, branch=1), "c.pth")
    sanakit("convert", "c.pth", "whole", "--config", config, "--base", models / "plain")
    whole = Path("whole")
    assert SanaControlNetPipeline.from_pretrained(whole).controlnet.config.wiring == "original"
    generate(whole, "--control", "in.png", "-o", "followed.png")
    generate(whole, "--control", "in.png", "--control-scale", 0, "-o", "alone.png")
    assert (pixels("followed.png") != pixels("alone.png")).any()


def test_another_branch_at_the_same_place_is_told(models: Path) -> None:
    SanaControlNetModel.from_pretrained(models / "branch").save_pretrained("mine")
    named = ("--controlnet", "mine")
    generate(models / "plain", "--control", "in.png", *named, "-o", "out.png")
    assert read_settings(Path("out.png"))["controlnet"] == "mine"
    other = SanaControlNetModel.from_pretrained("mine")
    with torch.no_grad():
        other.input_block.bias.add_(1)
    other.save_pretrained("mine")
    _, said = sanakit("again", "out.png")
    assert "control branch mine is not the one that drew it" in said
    shutil.rmtree("mine")
    _, said = sanakit("again", "out.png", code=3)
    assert said.startswith("error: out.png: its control branch mine: no such folder")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (("--control", "nothing.png"), "nothing.png: cannot be read"),
        (("--control", __file__), "not a picture: text"),
        (("--control", "in.png"), "has no control branch"),
        (
            ("--control", "in.png", "--controlnet", "nowhere"),
            "nowhere: no such folder",
        ),
        (("--control", "in.png", "--controlnet", "."), "holds no control branch"),
        (("--control", "in.png", "--controlnet", "glyph"), "holds no control branch"),
        (("--controlnet", "glyph"), "there is nothing to follow"),
        (("--control-kind", "canny"), "there is nothing to follow"),
        (("--control", "in.png", "--control-kind", "depth"), "no depth network"),
        (("--control", "in.png", "--control-kind", "cany"), "did you mean 'canny'"),
        (("--control", "in.png", "--control-scale", "nan"), "must be a number"),
        (("--control", "in.png", "--control-scale", "inf"), "must be a number"),
        (("--control", "in.png", "--control-scale", "-1"), "--control-scale"),
    ],
)
def test_what_cannot_be_followed_is_refused_before_anything_is_written(
    typed: tuple[str, ...], message: str, models: Path
) -> None:
    before = sorted(Path.cwd().iterdir())
    missing = "no such folder" in message or "holds no control" in message
    _, said = generate(models / "plain", *typed, code=3 if missing else 2)
    assert message in said
    assert sorted(Path.cwd().iterdir()) == before


def test_an_edit_may_follow_a_picture_too(models: Path) -> None:
    command = ("edit", "in.png", "a tree", "--model", models / "whole", "--steps", 2, "-q")
    sanakit(*command, "--strength", 1, "-o", "free.png")
    sanakit(*command, "--strength", 1, "--control", "in.png", "-o", "led.png")
    assert (pixels("free.png") != pixels("led.png")).any()
    generate(models / "whole", "--control", "in.png", "-o", "drawn.png")
    assert (pixels("drawn.png") == pixels("led.png")).all()
    sanakit("again", "led.png", "-o", "once-more.png", "-q")
    assert (pixels("once-more.png") == pixels("led.png")).all()
