"""Control branches of one's own: conditions, the command."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from command_line import sanakit
from sanakit.errors import ConfigError, DataError
from sanakit.models.config import TransformerConfig
from sanakit.pipeline.networks import SanaTransformer2DModel
from sanakit.train.recipes.controlnet import Condition, ControlNetRecipe, build, new_run
from sanakit.train.runs.run_config import RunConfig
from sanakit.weights.store import read_config
from tiny_sana import FAST, TinySana, tiny_sana


@pytest.fixture(scope="module")
def sana(tmp_path_factory: pytest.TempPathFactory) -> TinySana:
    return tiny_sana(tmp_path_factory.mktemp("sana"))


def run_of(sana: TinySana, *settings: str, **arguments: Any) -> tuple[ControlNetRecipe, RunConfig]:
    given = {"data": str(sana.data), "start": str(sana.model), "condition": "canny"}
    return build(new_run(given | arguments, [*FAST, *settings]), report=lambda line: None)


def test_the_command_makes_a_branch_that_both_draw_with(sana: TinySana, tmp_path: Path) -> None:
    run = tmp_path / "edges"
    settings = [each for pair in FAST for each in ("--set", pair)]
    out, _ = sanakit(
        *("train", "controlnet", "--data", sana.data, "--from", sana.model, "--condition", "canny"),
        *("--held", sana.data, "--out", run, *settings),
    )
    assert f"--control-kind canny --controlnet {run}" in out
    (grid,) = (run / "pictures").glob("*.png")
    with Image.open(grid) as picture:
        # Control, two seeds, picture; a row for each of four pictures of a size of the set.
        assert picture.size in ((4 * 64, 4 * 64), (4 * 96, 4 * 64))
    control = tmp_path / "control.png"
    Image.effect_noise((64, 64), 90).convert("RGB").save(control)
    drawn = []
    for scale in (0, 1):
        told = ("--control", control, "--control-kind", "canny", "--control-scale", scale)
        picture = tmp_path / f"{scale}.png"
        sanakit(
            *("generate", "a tree", "--model", sana.model, "--controlnet", run, *told),
            *("--steps", 2, "--width", 64, "--height", 64, "-o", picture),
        )
        drawn.append(np.asarray(Image.open(picture)))
    assert not np.array_equal(*drawn)
    theirs = diffusers.SanaControlNetModel.from_pretrained(run / "controlnet")
    assert theirs.config.num_layers == 1
    sanakit("train", "show", run)


def test_ready_control_images_are_found_by_their_pictures_names(
    sana: TinySana, tmp_path: Path
) -> None:
    recipe, _ = run_of(sana)
    batch = next(recipe._fixed())
    assert batch.pixels is not None
    folder = tmp_path / "edges"
    for row, id in enumerate(batch.ids):
        (folder / id).parent.mkdir(parents=True, exist_ok=True)
        size = batch.pixels.shape[2], batch.pixels.shape[1]
        Image.new("RGB", size, (20 * row,) * 3).save(folder / f"{id}.png")
    own, _ = run_of(sana, condition=str(folder))
    last = {id: 20 * row for row, id in enumerate(batch.ids)}  # the set may show one twice
    assert len(last) > 1
    for row, id in enumerate(batch.ids):
        assert own._control_of(batch)(row).unique().tolist() == [last[id]]
    height, width = batch.pixels.shape[1:3]
    wide = np.zeros((height, 3 * width, 3), np.uint8)  # the middle third is what is seen
    wide[:, width : 2 * width] = 255
    Image.fromarray(wide).save(folder / f"{batch.ids[0]}.png")
    assert own._control_of(batch)(0).float().mean() > 254
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(DataError, match="no control image for"):
        own._control_of(batch)(0)


def test_a_control_image_is_never_read_from_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    with pytest.raises(DataError, match=r"no control image for '\.\./secret'"):
        Condition(of=str(tmp_path / "in")).image("../secret", torch.zeros(8, 8, 3))


@pytest.mark.parametrize(
    ("arguments", "settings", "said"),
    [
        ({"condition": "cany"}, (), "no such folder, and no kind"),
        ({"condition": "none"}, (), "canny, scribble, soft-edges, or a folder"),
        ({"condition": None}, (), "--condition is missing"),
        ({"start": None}, (), "--from is missing"),
        ({"layers": 2}, (), "the transformer has 2 blocks, and a branch fewer"),
        ({"layers": 0}, (), "--layers 0"),
        ({}, ("lora_rank=2",), "no setting 'lora_rank'"),
        ({}, ("base_dtype=bfloat16",), "no setting 'base_dtype'"),
    ],
)
def test_what_cannot_be_trained_is_said_before_it_begins(
    sana: TinySana, arguments: dict[str, Any], settings: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        run_of(sana, *settings, **arguments)
    assert said in f"{caught.value} {caught.value.hint}"


def test_the_branch_has_all_but_one_of_the_blocks_where_there_are_few(sana: TinySana) -> None:
    recipe, _ = run_of(sana)
    known = read_config(sana.model / "transformer", TransformerConfig)
    assert recipe.branch.config.num_layers == known.num_layers - 1 == 1
    assert isinstance(recipe.transformer, SanaTransformer2DModel)
