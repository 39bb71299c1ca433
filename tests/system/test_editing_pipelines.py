"""The two faces of editing, as published code would call them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sanakit
from sanakit import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
    SanaImg2ImgPipeline,
    SanaInpaintPipeline,
    SanaPAGPipeline,
    SanaPipeline,
)
from sanakit.errors import ConfigError, DataError, UnknownArgumentError

PIXELS = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
MASK = np.zeros((64, 64), np.uint8)
MASK[:, 40:] = 255
# The tiny model draws few sizes, all of them small.
pytestmark = pytest.mark.filterwarnings("ignore:the picture is .* and is drawn at")


@pytest.fixture(scope="module")
def pipe(folder: Path) -> SanaPipeline:
    return SanaPipeline.from_pretrained(folder)


def few(**more: object) -> dict[str, object]:
    return {"num_inference_steps": 4, "generator": torch.Generator().manual_seed(3)} | more


def test_a_picture_becomes_another(pipe: SanaPipeline) -> None:
    edit = SanaImg2ImgPipeline.from_pipe(pipe)
    picture = Image.fromarray(PIXELS)
    drawn = edit("a tree", picture, 0.5, **few()).images[0]
    named = edit(prompt="a tree", image=PIXELS, strength=0.5, **few()).images[0]
    assert drawn.size == (64, 64)
    np.testing.assert_array_equal(drawn, named)
    whole = edit("a tree", picture, 1.0, **few()).images[0]
    plain = pipe("a tree", height=64, width=64, **few()).images[0]
    np.testing.assert_array_equal(whole, plain)


def test_only_the_mask_changes(pipe: SanaPipeline) -> None:
    edit = SanaInpaintPipeline.from_pipe(pipe)
    drawn = edit("a tree", Image.fromarray(PIXELS), Image.fromarray(MASK), **few()).images[0]
    pixels = np.asarray(drawn)
    np.testing.assert_array_equal(pixels[MASK == 0], PIXELS[MASK == 0])
    assert (pixels[MASK > 0] != PIXELS[MASK > 0]).any()


def test_a_canvas_grows(pipe: SanaPipeline) -> None:
    edit = SanaInpaintPipeline.from_pipe(pipe)
    grown = edit("a tree", PIXELS, expand=(0, 32, 64, 0), **few()).images[0]
    assert grown.size == (128, 96)
    np.testing.assert_array_equal(np.asarray(grown)[32:, :64], PIXELS)
    both = edit("a tree", PIXELS, MASK, expand=(0, 32, 64, 0), **few()).images[0]
    np.testing.assert_array_equal(np.asarray(both)[32:, :40], PIXELS[:, :40])


def test_a_size_that_is_named_is_covered_by_the_picture(pipe: SanaPipeline) -> None:
    edit = SanaInpaintPipeline.from_pipe(pipe)
    wide = np.concatenate([PIXELS, PIXELS], axis=1)
    with pytest.warns(UserWarning, match="the mask is black everywhere"):
        drawn = edit("a tree", wide, np.zeros((64, 128)), height=64, width=64, **few()).images[0]
    np.testing.assert_array_equal(drawn, wide[:, 32:96])


def test_callbacks_count_the_steps_that_run(pipe: SanaPipeline) -> None:
    edit = SanaImg2ImgPipeline.from_pipe(pipe)
    seen: list[tuple[int, float]] = []

    def told(pipe: object, index: int, timestep: torch.Tensor, tensors: dict) -> dict:
        seen.append((index, float(timestep)))
        assert tensors["latents"].shape[-2:] == (2, 2)
        return {}

    edit("a tree", PIXELS, 0.5, callback_on_step_end=told, **few())
    whole = pipe.scheduler.grid(4)
    assert seen == [(0, float(whole.timesteps[2])), (1, float(whole.timesteps[3]))]
    assert edit.num_timesteps == 2


REFUSED = {
    "no picture": ({"image": None}, "image is missing"),
    "no mask": ({"mask_image": None}, "mask_image is missing"),
    "no step left": ({"strength": 0.1}, "leaves none to run"),
    "strength above one": ({"strength": 1.5}, "strength=1.5"),
    "a crop around the mask": ({"padding_mask_crop": 8}, "padding_mask_crop=8"),
    "another mask": ({"mask_image": MASK[:32]}, "mask_image is 64 x 32"),
    "a side that is none": ({"expand": (0, -1, 0, 0)}, "expand="),
    "a canvas of gigabytes": ({"expand": (8000, 8000, 8000, 8000)}, "16064 x 16064"),
    "sides without end": ({"expand": (0, 0, 10**9, 0)}, "expand=.* 1000000064 x 64"),
    "three sides": ({"expand": (0, 1, 0)}, "expand="),
    "a size off the grid": ({"height": 50, "width": 64}, "height=50"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_drawn_is_refused(name: str, pipe: SanaPipeline) -> None:
    edit = SanaInpaintPipeline.from_pipe(pipe)
    changed, message = REFUSED[name]
    arguments = {"prompt": "a tree", "image": PIXELS, "mask_image": MASK} | changed
    with pytest.raises(ConfigError, match=message):
        edit(**arguments, **few())


def test_other_refusals(pipe: SanaPipeline) -> None:
    edit = SanaImg2ImgPipeline.from_pipe(pipe)
    with pytest.raises(UnknownArgumentError, match="mask_image"):
        edit("a tree", PIXELS, mask_image=MASK)
    with pytest.raises(DataError, match="cannot be read"):
        edit("a tree", "nowhere.png")


def test_the_task_chooses_the_pipeline(folder: Path, pipe: SanaPipeline, tmp_path: Path) -> None:
    for auto, kind in (
        (AutoPipelineForImage2Image, SanaImg2ImgPipeline),
        (AutoPipelineForInpainting, SanaInpaintPipeline),
    ):
        assert type(auto.from_pretrained(folder)) is kind
        shared = auto.from_pipe(pipe)
        assert type(shared) is kind
        assert shared.transformer is pipe.transformer
        assert type(auto.from_pipe(SanaPAGPipeline.from_pipe(pipe))) is kind
        assert type(auto.from_pipe(shared)) is kind
        assert type(AutoPipelineForText2Image.from_pipe(shared)) is SanaPipeline
        with pytest.raises(ConfigError, match="from_pretrained or from_pipe"):
            auto()
    SanaInpaintPipeline.from_pipe(pipe).save_pretrained(tmp_path)
    # diffusers has no class of this name, and the folder is a whole SanaPipeline.
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "SanaPipeline"
    assert {"SanaImg2ImgPipeline", "AutoPipelineForInpainting"} <= set(dir(sanakit))
