"""`python -m recipes.glyph eval` as a user types it, on tiny networks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from recipes.glyph.data.pictures import GlyphPictures

from glyph_command import glyph
from sanakit.evaluate import features
from sanakit.models.perceptual import PerceptualNetwork
from sanakit.weights import perceptual
from tiny import write_tiny
from tiny_compositions import tiny_compositions
from tiny_features import tiny_features
from tiny_pictures import tiny_record, write_pictures

WIDTH = 24


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> GlyphPictures:
    return tiny_compositions(tmp_path_factory.mktemp("set") / "data")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    splits = ["train"] * 60 + ["held_concept"] * 24 + ["held_style"] * 26
    records = [tiny_record(index, split=split) for index, split in enumerate(splits)]
    records[3] = replace(records[3], hidden_on=("white",))
    return str(write_pictures(tmp_path_factory.mktemp("set"), records))


@pytest.fixture(autouse=True)
def tiny_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def loaded(path: Path | None = None) -> features.FeatureNetwork:
        return tiny_features(width=WIDTH)

    def judge() -> PerceptualNetwork:
        torch.manual_seed(0)
        return PerceptualNetwork(((4,), (6,)))

    monkeypatch.setattr(features, "load_features", loaded)
    monkeypatch.setattr(perceptual, "load_perceptual", judge)


def found(family: str) -> dict[str, dict[str, Any]]:
    folder = Path("runs/eval") / family
    value = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    assert value["family"] == family
    assert (folder / "evaluation.md").read_text(encoding="utf-8").startswith(f"# {family}")
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            image.load()
    return {figure["name"]: figure for figure in value["figures"]}


def test_autoencoder_of_a_glyph_set(model: str, data: str) -> None:
    out, _ = glyph("eval", "autoencoder", model, "--data", data, "-n", 10)
    assert "| PSNR, mean over pictures |" in out
    assert [figure["count"] for figure in found("autoencoder").values()] == 5 * [10]


def test_generation_and_memorisation_judge_the_same_drawn_pictures(model: str, data: str) -> None:
    common = ("--data", data, "-n", 45, "--reference", 50, "--steps", 2)
    out, err = glyph("eval", "generation", model, *common)
    assert "generated 45 of 45" in err
    assert "| FD-EffNetLite0, drawn / held-out real |" in out
    figures = found("generation")
    drawn, held = (figures[f"FD-EffNetLite0, {name}"] for name in ("drawn", "held-out real"))
    ratio = figures["FD-EffNetLite0, drawn / held-out real"]
    assert ratio["value"] == pytest.approx(drawn["value"] / held["value"])
    assert drawn["value"] > 2 * held["value"]  # the tiny model draws nothing of the kind
    # All alike, they may all lie in the ball of one real picture; they cannot cover the others.
    assert figures["recall (k=3), drawn"]["value"] <= 0.1
    for name in ("precision", "recall"):
        assert figures[f"{name} (k=3), held-out real"]["value"] > 0.5
    assert figures["KID, drawn"]["low"] > figures["KID, held-out real"]["high"]

    _, err = glyph("eval", "memorisation", model, *common)
    assert "generated 45 of 45" not in err
    figures = found("memorisation")
    assert len(figures) == 6
    for name in ("features", "pixels"):
        share = figures[f"share of drawn nearer than 1 % of held-out real, by {name}"]
        assert share["value"] == 0
        assert 20 <= share["count"] < 45
    names = {path.name for path in Path("runs/eval/memorisation").glob("*.png")}
    assert names == {"features.png", "pixels.png", "nearest.png"}


def test_too_few_pictures_are_refused_before_anything_is_drawn(model: str, data: str) -> None:
    _, err = glyph("eval", "generation", model, "--data", data, "-n", 39, code=2)
    assert "count=39: KID needs 40" in err
    assert not Path("runs/eval/generation").exists()
    _, err = glyph("eval", "memorisation", model, "--data", "nowhere", code=2)
    assert "nowhere is no glyph set" in err


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))


def test_composition(model: str, pictures: GlyphPictures) -> None:
    data = pictures.store.folder.parent
    common = (model, "--data", data, "-n", 4, "--steps", 1)
    out, err = glyph("eval", "composition", *common)
    assert "| two-object relation: real pictures |" in out
    assert "generated 16 of 16" in err
    figures = found("composition")
    details = report(Path("runs/eval/composition"))["details"]
    for name in ("background colour", "object colour", "two-object relation", "count of 1 to 4"):
        assert figures[name]["count"] == 4
        assert figures[name]["better"] == "higher"
        for other in ("other prompts", "real pictures", "real, through the autoencoder"):
            assert figures[f"{name}: {other}"]["low"] <= figures[f"{name}: {other}"]["value"]
    assert figures["two-object relation"]["value"] == 0  # the tiny model draws noise
    assert len(details["prompts"]) == 16
    assert {one["kind"] for one in details["prompts"]} == {
        "background", "colour", "relation", "count",
    }  # fmt: skip
    names = ("composition.png", "compositions.png", "colours.png")
    for name in names:
        with Image.open(Path("runs/eval/composition") / name) as image:
            image.load()
            assert image.width > 400

    out, err = glyph("eval", "composition", *common, "--kind", "colour", "-o", "colours")
    assert "relation" not in out
    assert not Path("colours/compositions.png").exists()
    first = [one for one in details["prompts"] if one["kind"] == "colour"]
    assert report(Path("colours"))["details"]["prompts"] == first
    other, _ = glyph(
        "eval", "composition", *common, "--kind", "colour", "-o", "again", "--prompts-seed", 1
    )
    assert report(Path("again"))["details"]["prompts"] != first


def test_composition_refuses_what_it_cannot_judge(model: str, pictures: GlyphPictures) -> None:
    data = pictures.store.folder.parent
    _, err = glyph("eval", "composition", model, "--data", data, "-n", 0, code=2)
    assert "count=0 is less than 1" in err
    _, err = glyph("eval", "composition", model, "--data", "nowhere", code=2)
    assert "no glyph set" in err
    _, err = glyph("eval", "composition", model, "--data", data, "--kind", "shape", code=2)
    assert "no kind 'shape'" in err
    assert not Path("runs/eval/composition").exists()
