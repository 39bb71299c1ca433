"""`python -m recipes.glyph eval train-judge` and `eval retrieval` as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from recipes.glyph.commands import evaluate as commands
from recipes.glyph.evaluate import judge_samples as visual_features
from recipes.glyph.evaluate.judge import ORIGIN

from glyph_command import glyph
from sanakit.errors import MissingModelError
from tiny import write_tiny
from tiny_judge import tiny_shapes, tiny_sight

SHORT = ("--set", "batch_size=32", "--set", "total_images=64", "--set", "device=cpu")


@pytest.fixture(autouse=True)
def eyes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(commands, "feature_network", lambda folder, device: None)
    monkeypatch.setattr(visual_features, "sight_of", lambda network: tiny_sight())
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """The data, the judge's folder, still empty, and a model."""
    folder = tmp_path_factory.mktemp("eval")
    tiny_shapes(folder / "data")
    return folder / "data", folder / "judge", write_tiny(folder / "model")


def test_a_judge_is_taught_and_asked_about_a_model(made: tuple[Path, Path, Path]) -> None:
    data, judge, model = made
    told = ("--data", data, "--out", judge, "--pictures", 40, "--held", 8, "--ways", 6, *SHORT)
    out, _ = glyph("eval", "train-judge", *told)
    assert "R-precision@1, held-out styles: real" in out
    assert json.loads((judge / "evaluation.json").read_text())["family"] == "judge"
    stored = sum(path.stat().st_size for path in judge.rglob("*") if "work" not in path.parts)
    assert stored <= 8 << 20
    # What is there is not taught a second time by accident, and what was interrupted goes on.
    assert "already holds a run" in glyph("eval", "train-judge", *told, code=2)[1]
    (judge / ORIGIN).unlink()
    glyph("eval", "train-judge", *told, "--resume")

    asked = (
        "--judge",
        judge,
        "--data",
        data,
        "--count",
        4,
        "--ways",
        6,
        "--steps",
        1,
        "--cache",
        "cache",
    )
    out, lines = glyph("eval", "retrieval", model, *asked, "--out", "first")
    assert "| R-precision@1, held-out concepts |" in out
    assert "generated 4 of 4" in lines
    found = json.loads(Path("first", "evaluation.json").read_text())
    assert found["settings"]["ways"] == 6
    assert {one["count"] for one in found["figures"]} == {4}
    for split in ("held_style", "held_concept"):
        prompts = found["details"][split]["prompts"]
        assert len(prompts) == 4
        assert sum(one["count"] for one in found["details"][split]["by style"].values()) == 4
        for line in prompts:
            # Ranks begin at 1, and what was preferred to a hit is the prompt itself.
            assert 1 <= line["rank"] <= 6
            assert line["id"].split("/")[1] in line["prompt"]
            assert (line["rank"] == 1) == (line["preferred"] == line["prompt"])
    for name in ("bars.png", "sheet.png"):
        with Image.open(Path("first", name)) as image:
            assert image.width > 600
    assert "drawn" not in glyph("eval", "retrieval", model, *asked, "--out", "first")[1]


def test_a_judge_of_other_data_is_refused_and_nothing_is_written(
    made: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    _, judge, model = made
    tiny_shapes(tmp_path / "other")
    records = tmp_path / "other" / "records.jsonl"
    records.write_text(records.read_text().replace("a red", "a rosy"))
    asked = ("--judge", judge, "--data", tmp_path / "other", "--count", 4, "--ways", 6)
    _, error = glyph("eval", "retrieval", model, *asked, "--out", "out", code=2)
    assert "was trained on data" in error
    assert "python -m recipes.glyph eval train-judge" in error
    assert not Path("out").exists()


def test_a_folder_without_a_judge_says_what_it_lacks(tmp_path: Path) -> None:
    _, error = glyph("eval", "retrieval", "--judge", tmp_path, code=3)
    assert ORIGIN in error


def test_an_absent_network_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def absent(folder: Path | None, device: str) -> None:
        raise MissingModelError("features need a package", hint="pip install it")

    monkeypatch.setattr(commands, "feature_network", absent)
    _, error = glyph("eval", "train-judge", "--data", tmp_path, code=3)
    assert "pip install it" in error
