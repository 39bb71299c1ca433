"""`sanakit quantize` as a user types it: the embedded model, tiny ones, and what is refused."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from command_line import sanakit
from sanakit import SanaPipeline
from sanakit.nn.int8_convolution import pays
from sanakit.pipeline import quantized_copy
from sanakit.pipeline.pipeline import Pipeline
from sanakit.weights.store import read_quantization
from tiny import write_tiny


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model in int8, and its report."""
    where = tmp_path_factory.mktemp("models") / "q"
    sanakit("quantize", "glyph", "--int8", "-o", where, "--steps", 2, "--count", 1, "--quiet")
    return where


def test_the_embedded_model_becomes_int8_and_draws(small: Path, tmp_path: Path) -> None:
    told = json.loads((small / "quantization.json").read_text())
    decoder = {"vae": "w8a8"} if pays("cpu") else {}
    assert told["methods"] == {"transformer": "w8a8", "text_encoder": "w8a16", **decoder}
    assert told["pictures"][0]["psnr"] > 25
    rounded = {each["layer"]: each for each in told["layers"]}
    wide = rounded["transformer.transformer_blocks.0.ff.conv_inverted"]
    assert 0 < wide["weight"] < 0.02
    assert 0 < wide["output"] < 0.05
    assert any(name.startswith("text_encoder.") for name in rounded)
    assert (read_quantization(small / "vae") is not None) == pays("cpu")
    if pays("cpu"):
        convolution = rounded["vae.decoder.up_blocks.2.1.conv1"]
        assert 0 < convolution["weight"] < 0.02
        assert 0 < convolution["output"] < 0.05
        assert not any(name.startswith("vae.decoder.conv_") for name in rounded)
    assert read_quantization(small / "text_encoder") is not None
    # What runs once a picture, and what all blocks hang on, is left as it is.
    assert not any("attn2.to_k" in name or "proj_out" in name for name in rounded)
    assert read_quantization(small / "transformer") is not None
    sanakit("generate", "a red apple", "-m", small, "--steps", 1, "-o", tmp_path / "a.png", "-q")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (256, 256)


def test_what_is_quantized_is_not_quantized_again(small: Path, tmp_path: Path) -> None:
    _, errors = sanakit("quantize", small, "--int8", "-o", tmp_path / "again", code=2)
    assert "transformer: is quantized already" in errors
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "no format was asked for"),
        (("--int8", "--int4"), "--int8 and --int4 was asked for"),
        (("--fp8",), "no layout on disk"),
    ],
)
def test_one_format_is_asked_for(options: tuple[str, ...], said: str, tmp_path: Path) -> None:
    _, errors = sanakit("quantize", "glyph", *options, "-o", tmp_path / "q", code=2)
    assert said in errors
    assert not (tmp_path / "q").exists()


def test_a_folder_in_the_way_is_left_alone_and_a_failure_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_tiny(tmp_path / "tiny")
    (tmp_path / "there").mkdir()
    _, errors = sanakit("quantize", model, "--int8", "-o", tmp_path / "there", code=2)
    assert "is there already" in errors
    assert not list((tmp_path / "there").iterdir())

    def full(*given: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(quantized_copy, "write_json", full)
    _, errors = sanakit("quantize", model, "--int8", "-o", tmp_path / "q", "--steps", 1, code=2)
    assert "No space left" in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there", "tiny"]


def test_a_tiny_model_in_each_kept_format_loads_by_the_usual_line(tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "tiny")
    for kind in ("--int8", "--int4"):
        sanakit("quantize", model, kind, "-o", tmp_path / kind, "--steps", 1, "--json")
        pipe = SanaPipeline.from_pretrained(tmp_path / kind)
        assert pipe("a cat", num_inference_steps=1, output_type="np").images[0].shape[2] == 3


def test_one_model_at_a_time_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[weakref.ref[Pipeline]] = []

    def load(*given: object, **named: object) -> Pipeline:
        assert all(one() is None for one in loaded)
        pipeline = Pipeline.load(*given, **named)
        loaded.append(weakref.ref(pipeline))
        return pipeline

    monkeypatch.setattr(quantized_copy, "Pipeline", SimpleNamespace(load=load))
    said, _ = sanakit("quantize", "glyph", "--int8", "-o", tmp_path / "q", "--steps", 1, "-n", 1)
    assert len(loaded) == 2
    assert "no smaller" in said
