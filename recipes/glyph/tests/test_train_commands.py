"""Commands of `python -m recipes.glyph`: what each makes, plans without a trace, notes, refuses."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from recipes.glyph.data.backgrounds import BACKGROUNDS
from recipes.glyph.train.language_model import language_model_run
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from glyph_command import glyph
from sanakit.pipeline.components import load_components
from sanakit.train.runs.run_config import read_run
from tiny import TOKENIZER, write_tiny
from tiny_pictures import tiny_record, write_pictures
from tiny_recipe import drawn
from tiny_scenes import tiny_scenes

SHORT = ["device=cpu", "batch_size=2", "total_images=4", "compute_dtype=float32", "log_every=1"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in, with a set and the language model's rows."""
    monkeypatch.chdir(tmp_path)
    tiny_scenes(tmp_path / "data" / "glyph")
    text = tmp_path / "data" / "glyph" / "text"
    shutil.copytree(TOKENIZER, text / "tokenizer")
    rows = np.random.default_rng(0).integers(3, 500, (6, 12)).astype(np.uint16)
    np.save(text / "rows.npy", rows)
    np.save(text / "held.npy", rows[:2])
    return tmp_path


def lm(*arguments: object, settings: list[str] = SHORT, code: int = 0) -> str:
    pairs = [part for setting in settings for part in ("--set", setting)]
    return glyph("lm", "--shape", "tiny", *arguments, *pairs, code=code)[1 if code else 0]


def test_the_set_is_built_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def build_glyph(out: Path, **options: Any) -> SimpleNamespace:
        asked.append((out, options["size"], options["workers"]))
        return SimpleNamespace(pictures=3)

    monkeypatch.setattr("recipes.glyph.data.build.build_glyph", build_glyph)
    assert "data/glyph: 3 pictures" in glyph("build", "--size", 64)[0]
    assert asked == [(Path("data/glyph"), [64], 2)]


def test_samples_are_pictures_with_captions_and_more_of_them_begin_with_the_same(
    place: Path,
) -> None:
    glyph("samples", "-o", "few", "-n", 20, "--captions", 4, "--workers", 1)
    glyph("samples", "-o", "more", "-n", 30, "--captions", 4, "--workers", 1)

    def read(folder: str) -> dict[str, bytes]:
        with tarfile.open(next(Path(folder).iterdir())) as tar:
            return {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]

    few, more = read("few"), read("more")
    assert len(few) == 2 * 20
    assert few.items() <= more.items()
    said = [json.loads(few[name])["captions"] for name in few if name.endswith(".json")]
    assert all(1 <= len(set(texts)) == len(texts) <= 4 for texts in said)
    assert max(map(len, said)) > 1
    # Composites and grounds are told.
    everything = " ".join(text for texts in said for text in texts)
    assert any(f"{name} background" in everything for name in BACKGROUNDS)
    assert re.search(r"\b(two|three|four|left|above|below)\b", everything)
    glyph("samples", "-o", "alone", "-n", 20, "--composites", 0, "--workers", 1)
    alone = read("alone")
    texts = " ".join(alone[name].decode() for name in alone if name.endswith(".json"))
    assert not re.search(r"\b(two|three|four|left|above|below)\b", texts)
    before = next(Path("few").iterdir()).stat().st_mtime_ns
    glyph("samples", "-o", "few", "-n", 20, "--captions", 4, "--workers", 1)
    assert next(Path("few").iterdir()).stat().st_mtime_ns == before


def test_captions_alone_make_a_tokenizer_and_no_package_is_named_in_vain(tmp_path: Path) -> None:
    records = [{"captions": [f"a star of {number}", "a house"]} for number in range(60)]
    text = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "records.jsonl").write_text(text)
    glyph("tokenizer", "--data", tmp_path, "--no-dictionary")
    assert (tmp_path / "text" / "rows.npy").is_file()
    told = ("tokenizer", "--data", tmp_path, "--no-dictionary", "--packages", tmp_path)
    assert "captions alone need no package" in glyph(*told, code=2)[1]


def test_the_language_model_is_planned_without_a_trace_then_trained_and_resumed(
    place: Path,
) -> None:
    before = sorted(place.rglob("*"))
    told = lm("--dry-run")
    for word in ("FLOPs to train", "2 steps of 2", "images/s on one rank", "MFU"):
        assert word in told
    assert "--no-measure is of --dry-run" in lm("--no-measure", code=2)
    assert sorted(place.rglob("*")) == before
    lm()
    assert "resumed at 4" in lm("--resume", settings=["total_images=6"])
    assert "--set batch_size was 2" in lm("--resume", settings=["batch_size=3"], code=2)
    assert "no setting" in lm("--out", "other", settings=["batchsize=3"], code=2)
    assert not Path("other").exists()
    assert read_run("runs/glyph-lm") is not None


def test_operations_of_a_language_model_are_those_of_its_real_forward_pass(place: Path) -> None:
    recipe = language_model_run(place / "data" / "glyph" / "text", "tiny")
    batch = drawn(recipe, 3)
    # The counter does not know a CPU's fused attention.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        recipe.loss(batch)
    assert recipe.flops() == counter.get_total_flops() / 3


def test_a_start_takes_a_smaller_transformer_and_draws_what_it_drew(place: Path) -> None:
    lm()
    model = write_tiny(place / "model")
    told = ("--autoencoder", model, "--shape", "tiny", "--side", 64)
    glyph("start", "-o", "first", *told, "--layers", 1)
    glyph("start", "-o", "grown", *told, "--layers", 3, "--from", "first")
    first, grown = (load_components(name).transformer for name in ("first", "grown"))
    assert (first.config.num_layers, grown.config.num_layers) == (1, 3)
    x, text = torch.randn(1, 4, 2, 2), torch.randn(1, 5, 8)
    asked = x, torch.tensor([500.0]), text, torch.ones(1, 5, dtype=torch.bool)
    assert torch.allclose(first.velocity(*asked), grown.velocity(*asked), atol=1e-5)


def test_a_stage_without_the_one_before_ends_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "data", [tiny_record(0)], size=4)
    model = write_tiny(tmp_path / "model")
    told = ("start", "-o", "out", "--data", "data", "--autoencoder", model)
    assert "run `python -m recipes.glyph tokenizer` first" in glyph(*told, code=2)[1]
    shutil.copytree(TOKENIZER, tmp_path / "data" / "text" / "tokenizer")
    assert "glyph-lm holds no checkpoint" in glyph(*told, code=3)[1]
    said = lm("--data", "data", code=2)
    assert "rows.npy is missing\nhint: run `python -m recipes.glyph tokenizer` first" in said
    for verb in ("samples", "lm"):
        error = glyph(verb, *(("-o", "x") if verb == "samples" else ()), code=2)[1]
        assert error.count("\n") == error.count("hint: ") + 1
