"""Commands of `python -m recipes.glyph`: what each plans without a trace, notes and refuses."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from recipes.glyph.train import autoencoder, runs
from recipes.glyph.train.diffusion import DiffusionRecipe
from recipes.glyph.train.language_model import LanguageModelRecipe
from recipes.glyph.train.runs import glyph_diffusion, glyph_language_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer

from glyph_command import glyph
from sanakit.errors import DataError
from sanakit.models.autoencoder import Autoencoder
from sanakit.pipeline.components import load_components
from sanakit.train.distributed.ranks import Ranks
from sanakit.train.recipe import Recipe
from sanakit.train.runs.run_config import read_run
from tiny import AUTOENCODER, TOKENIZER, TRANSFORMER, tiny_components, write_tiny
from tiny_lm import tiny_lm_config
from tiny_pictures import tiny_record, write_pictures
from tiny_recipe import drawn
from tiny_scenes import tiny_scenes

SHORT = [
    *("device=cpu", "batch_size=2", "total_images=4", "compute_dtype=float32", "log_every=1"),
    "compile_blocks=false",
]
AUTOENCODED = [*SHORT, "held=2"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in, with all that the glyph recipes read, and shapes that are tiny."""
    monkeypatch.chdir(tmp_path)
    for module in (runs, autoencoder):
        monkeypatch.setattr(module, "AUTOENCODERS", {"glyph": AUTOENCODER})
    monkeypatch.setattr(runs, "TRANSFORMERS", {"glyph": TRANSFORMER})
    vocabulary = len(AutoTokenizer.from_pretrained(str(TOKENIZER)))
    monkeypatch.setattr(runs, "glyph_lm_config", partial(tiny_lm_config, vocabulary, layers=2))
    tiny_scenes(tmp_path / "data" / "glyph")
    text = tmp_path / "data" / "glyph" / "text"
    shutil.copytree(TOKENIZER, text / "tokenizer")
    rows = np.random.default_rng(0).integers(3, 500, (6, 12)).astype(np.uint16)
    np.save(text / "rows.npy", rows)
    np.save(text / "held.npy", rows[:2])
    return tmp_path


def train(*arguments: object, settings: list[str] = AUTOENCODED, code: int = 0) -> str:
    """What the command says; of one that fails, its error."""
    pairs = [part for setting in settings for part in ("--set", setting)]
    out, error = glyph(*arguments, *pairs, code=code)
    return error if code else out


def listed(place: Path) -> list[Path]:
    return sorted(place.rglob("*"))


# Planning.


def test_the_glyph_autoencoder_is_planned_without_a_trace(place: Path) -> None:
    before = listed(place)
    told = train("autoencoder", "--dry-run")
    weights = sum(p.numel() for p in Autoencoder(AUTOENCODER).parameters())
    assert f"parameters  {weights:,} learn, 0 are frozen" in told
    for word in ("FLOPs to train", "activations an image", "2 steps of 2", "images/s on one rank"):
        assert word in told
    assert "bucket" not in told
    assert "epoch" not in told
    assert listed(place) == before


def test_compiled_blocks_are_compiled_for_the_clock_alone(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **how: compiled.append(module))
    settings = [*SHORT, "compile_blocks=true"]
    train("autoencoder", "--dry-run", "--no-measure", settings=settings)
    assert compiled == []
    train("autoencoder", "--dry-run", settings=settings)
    assert len(compiled) > 4


def test_the_language_model_is_planned_without_a_trace(place: Path) -> None:
    before = listed(place)
    told = train("lm", "--dry-run", settings=SHORT)
    for word in ("FLOPs to train", "2 steps of 2", "images/s on one rank", "MFU"):
        assert word in told
    assert "bucket" not in told
    assert listed(place) == before
    again = train("lm", "--dry-run", "--no-measure", settings=[*SHORT, "accumulation=2"])
    assert "1 images at a time" in again


def test_the_glyph_transformer_is_planned_before_the_stages_that_it_needs(place: Path) -> None:
    before = listed(place)
    told = train("diffusion", "--dry-run", settings=SHORT)
    for word in ("FLOPs to train", "2 steps of 2", "images/s on one rank", " 0 are frozen"):
        assert word in told
    assert listed(place) == before
    frozen = train("diffusion", "--dry-run", "--no-measure", "--freeze-text", settings=SHORT)
    assert " 0 are frozen" not in frozen


def test_no_measure_is_refused_without_a_dry_run_for_every_stage(place: Path) -> None:
    for stage in (["autoencoder"], ["lm"], ["diffusion"]):
        assert "--no-measure is of --dry-run" in train(*stage, "--no-measure", settings=[], code=2)


def counted(recipe: Recipe[Any], batch: Any) -> int:
    # The counter does not know a CPU's fused attention.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        recipe.loss(batch)
    return counter.get_total_flops()


def test_operations_of_a_language_model_are_those_of_its_real_forward_pass(place: Path) -> None:
    recipe = glyph_language_model(place / "data" / "glyph")[0]
    assert recipe.flops() == counted(recipe, drawn(recipe, 3)) / 3


def test_operations_of_a_learning_text_encoder_count_with_the_transformer_s(place: Path) -> None:
    recipe, _ = planned(place)
    assert recipe.flops() == 0
    wanted = counted(recipe, drawn(recipe, 4)) / 4
    assert recipe.flops() == wanted


def planned(place: Path) -> tuple[Any, Any]:
    torch.manual_seed(0)
    data = place / "data" / "glyph"
    return glyph_diffusion(data, autoencoder="no", lm="no", ranks=Ranks(), out=None)


@pytest.mark.parametrize("stage", ["lm", "diffusion"])
def test_recomputed_blocks_give_the_same_gradients(place: Path, stage: str) -> None:
    def gradients(*, recomputed: bool) -> tuple[dict[str, Any], list[int]]:
        torch.manual_seed(0)
        recipe: Any = glyph_language_model(place / "data" / "glyph")[0]
        if stage == "diffusion":
            recipe = planned(place)[0]
        assert isinstance(recipe, LanguageModelRecipe | DiffusionRecipe)
        recipe.module.train()
        if recomputed:
            recipe.checkpoint_gradients()
        calls = Counter[int]()
        for number, block in enumerate(recipe.blocks()):
            # Of what is inside: a block's own hook may be outside of what is recomputed.
            next(block.children()).register_forward_pre_hook(
                lambda *_, number=number: calls.update([number])
            )
        recipe.loss(drawn(recipe, 4))["loss"].backward()
        found = {n: p.grad for n, p in recipe.module.named_parameters() if p.grad is not None}
        return found, list(calls.values())

    (plain, once), (again, twice) = gradients(recomputed=False), gradients(recomputed=True)
    assert len(plain) > 10
    assert_close(again, plain, rtol=0, atol=0)
    assert all(more > some > 0 for more, some in zip(twice, once, strict=True))


# What is noted beside a run.


def fields_of(run: Path) -> dict[str, Any]:
    pairs = [pair.partition("=") for pair in read_run(run).settings]
    return {key: json.loads(text) for key, _, text in pairs}


def test_every_stage_notes_its_settings_and_refuses_another_stage_s_run(place: Path) -> None:
    train("lm", settings=SHORT)
    fields = fields_of(Path("runs/glyph-lm"))
    assert (fields["batch_size"], fields["peak_lr"], fields["betas"]) == (2, 2e-3, [0.9, 0.98])
    assert read_run("runs/glyph-lm").arguments == {"data": "data/glyph"}
    assert "resumed at 4" in train("lm", "--resume", settings=["total_images=6"])
    refused = train("lm", "--resume", settings=["batch_size=3"], code=2)
    assert "--set batch_size was 2" in refused
    said = train("autoencoder", "--resume", "--out", "runs/glyph-lm", settings=[], code=2)
    assert "is a run of `sanakit train lm`" in said

    train("autoencoder", settings=AUTOENCODED)
    train("diffusion", "--samples", "8", settings=SHORT)
    file = read_run("runs/glyph-diffusion")
    assert (file.verb, file.arguments["tune_text"]) == ("diffusion glyph", True)
    assert fields_of(Path("runs/glyph-diffusion"))["average_halflife"] == 12_000
    # Files of other stages do not make it a run on own pictures.
    told = train("diffusion", "--resume", "--freeze-text", settings=["total_images=6"])
    assert "resumed at 4" in told
    assert read_run("runs/glyph-diffusion").arguments["tune_text"] is False
    assert "resumed at 6" in train(
        "diffusion", "--resume", "--out", "runs/glyph-diffusion", settings=["total_images=8"]
    )
    assert read_run("runs/glyph-diffusion").arguments["tune_text"] is False


def test_a_models_text_encoder_comes_with_its_own_tokenizer(place: Path) -> None:
    data, model = place / "data" / "glyph", write_tiny(place / "model")
    shutil.rmtree(data / "text" / "tokenizer")
    llm = tiny_components().prompts.text_encoder.llm
    for parameter in llm.parameters():
        parameter.data.zero_()
    told = runs._text_encoder(llm, data, str(model))
    own = load_components(model).prompts
    assert told.get_vocab() == own.tokenizer.get_vocab()
    for mine, theirs in zip(llm.parameters(), own.text_encoder.llm.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    with pytest.raises(DataError, match=r"run `python -m recipes\.glyph tokenizer` first"):
        runs._tokenizer(data, "runs/glyph-lm")


# What is refused.


@pytest.mark.parametrize("stage", ["lm", "autoencoder", "diffusion", "export"])
def test_an_absent_data_set_ends_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    monkeypatch.chdir(tmp_path)
    error = glyph(stage, code=2)[1]
    assert error.count("\n") == error.count("hint: ") + 1
    assert list(tmp_path.iterdir()) == []


def test_the_set_is_built_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def build_glyph(out: Path, **options: Any) -> SimpleNamespace:
        asked.append((out, options["size"], options["workers"]))
        return SimpleNamespace(pictures=3)

    monkeypatch.setattr("recipes.glyph.data.build.build_glyph", build_glyph)
    assert "data/glyph: 3 pictures" in glyph("build", "--size", 64)[0]
    assert asked == [(Path("data/glyph"), [64], 2)]


def test_a_stage_without_the_one_before_ends_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "data", [tiny_record(0)], size=4)
    said = glyph("diffusion", "--data", "data", code=3)[1]
    assert "glyph-autoencoder holds no checkpoint\nhint: train that stage first" in said
    said = glyph("lm", "--data", "data", code=2)[1]
    assert "rows.npy is missing\nhint: run `python -m recipes.glyph tokenizer` first" in said
    said = glyph("export", "--data", "data", "--diffusion", "runs", code=2)[1]
    assert "runs is no folder of a run" in said


@pytest.mark.parametrize(
    ("setting", "said"), [("batchsize=3", "no setting"), ("betas=1", "betas takes a value")]
)
def test_a_wrong_setting_ends_before_the_run_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = np.full((4, 8), 5, dtype=np.uint16)
    (tmp_path / "data" / "text").mkdir(parents=True)
    for name in ("rows", "held"):
        np.save(tmp_path / "data" / "text" / f"{name}.npy", rows)
    assert said in glyph("lm", "--data", "data", "--set", setting, code=2)[1]
    assert not (tmp_path / "runs").exists()
