"""`sanakit eval composition` as a user types it, on tiny networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from recipes.glyph.data.pictures import GlyphPictures

from command_line import sanakit
from sanakit.evaluate import features
from tiny import write_tiny
from tiny_compositions import tiny_compositions
from tiny_features import tiny_features


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> GlyphPictures:
    return tiny_compositions(tmp_path_factory.mktemp("set") / "data")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(features, "load_features", lambda path=None: tiny_features(width=24))


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))


def test_composition(model: str, pictures: GlyphPictures) -> None:
    data = pictures.store.folder.parent
    common = (model, "--data", data, "-n", 4, "--steps", 1)
    out, err = sanakit("eval", "composition", *common)
    assert "| two-object relation: real pictures |" in out
    assert "drawn 16 of 16" in err
    found = report(Path("runs/eval/composition"))
    figures = {one["name"]: one for one in found["figures"]}
    for name in ("background colour", "object colour", "two-object relation", "count of 1 to 4"):
        assert figures[name]["count"] == 4
        assert figures[name]["better"] == "higher"
        for other in ("other prompts", "real pictures", "real, through the autoencoder"):
            assert figures[f"{name}: {other}"]["low"] <= figures[f"{name}: {other}"]["value"]
    assert figures["two-object relation"]["value"] == 0  # the tiny model draws noise
    assert len(found["details"]["prompts"]) == 16
    assert {one["kind"] for one in found["details"]["prompts"]} == {
        "background", "colour", "relation", "count",
    }  # fmt: skip
    names = ("composition.png", "compositions.png", "colours.png")
    for name in names:
        with Image.open(Path("runs/eval/composition") / name) as image:
            image.load()
            assert image.width > 400

    out, err = sanakit("eval", "composition", *common, "--kind", "colour", "-o", "colours")
    assert "relation" not in out
    assert not Path("colours/compositions.png").exists()
    first = [one for one in found["details"]["prompts"] if one["kind"] == "colour"]
    assert report(Path("colours"))["details"]["prompts"] == first
    other, _ = sanakit(
        "eval", "composition", *common, "--kind", "colour", "-o", "again", "--prompts-seed", 1
    )
    assert report(Path("again"))["details"]["prompts"] != first


def test_composition_refuses_what_it_cannot_judge(model: str, pictures: GlyphPictures) -> None:
    data = pictures.store.folder.parent
    _, err = sanakit("eval", "composition", model, "--data", data, "-n", 0, code=2)
    assert "count=0 is less than 1" in err
    _, err = sanakit("eval", "composition", model, "--data", "nowhere", code=2)
    assert "no glyph set" in err
    _, err = sanakit("eval", "composition", model, "--data", data, "--kind", "shape", code=2)
    assert "no kind 'shape'" in err
    assert not Path("runs/eval/composition").exists()
