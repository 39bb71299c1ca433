"""Every example runs as it is written, on a tiny checkpoint in the published layout."""

from __future__ import annotations

import ast
import runpy
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))
SIDE = 64
"""Of the pictures that the tiny model draws when nobody says."""


@pytest.fixture
def run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run an example as a command would, in an empty folder; gives its variables."""

    def run(name: str, *arguments: str) -> dict[str, Any]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, str(folder), *arguments])
        return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")

    return run


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_there_are_five_examples() -> None:
    assert NAMES == [
        "high_resolution",
        "many_seeds",
        "quantized",
        "schedulers_and_pag",
        "text_to_image",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_short_says_its_arguments_and_needs_no_diffusers(name: str) -> None:
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 30
    tree = ast.parse(text)
    assert "[MODEL]" in (ast.get_docstring(tree) or "")
    imports = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert "sanakit" in imports
    assert "diffusers" not in imports


def test_text_to_image_draws_the_prompt_it_is_given(run: Any, tmp_path: Path) -> None:
    run("text_to_image", "a blue car")
    blue = pixels(tmp_path / "text_to_image.png")
    assert blue.shape == (SIDE, SIDE, 3)
    assert blue.min() < blue.max()
    run("text_to_image")
    assert not np.array_equal(blue, pixels(tmp_path / "text_to_image.png"))


def test_the_grid_holds_the_picture_that_each_seed_draws_alone(run: Any, tmp_path: Path) -> None:
    made = run("many_seeds")
    grid = pixels(tmp_path / "many_seeds.png")
    assert grid.shape == (2 * SIDE, 4 * SIDE, 3)
    alone = made["pipe"]("a rocket", generator=torch.Generator().manual_seed(6)).images[0]
    np.testing.assert_array_equal(grid[SIDE:, 2 * SIDE : 3 * SIDE], np.asarray(alone))


def test_schedulers_and_pag_draw_three_pictures_with_one_set_of_weights(
    run: Any, tmp_path: Path
) -> None:
    made = run("schedulers_and_pag")
    assert made["pag"].transformer is made["pipe"].transformer
    names = ("flow_dpm_solver", "flow_euler", "perturbed_attention")
    first, second, third = (pixels(tmp_path / f"{name}.png") for name in names)
    assert first.shape == (SIDE, SIDE, 3)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, third)


def test_high_resolution_draws_the_side_it_is_given_in_tiles(run: Any, tmp_path: Path) -> None:
    made = run("high_resolution", "96")
    assert pixels(tmp_path / "high_resolution.png").shape == (96, 96, 3)
    assert made["pipe"].vae.tiling is not None
    assert made["pipe"].transformer.proj_out.weight.dtype == torch.bfloat16


def test_the_published_quantized_code_runs_without_a_gpu(run: Any, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    with warnings.catch_warnings():
        # bitsandbytes and transformers warn of their own future; ours stay errors.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        made = run("quantized")
    picture = pixels(tmp_path / "sana.png")
    assert picture.shape == (SIDE, SIDE, 3)
    assert picture.min() < picture.max()
    assert made["transformer_8bit"] is made["pipeline"].transformer
    assert made["text_encoder_8bit"] is made["pipeline"].text_encoder
