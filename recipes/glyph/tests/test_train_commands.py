"""Commands of `sanakit train`: what each plans without a trace and notes beside its run."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recipes.glyph.train import runs
from recipes.glyph.train.diffusion import DiffusionRecipe
from recipes.glyph.train.language_model import LanguageModelRecipe
from recipes.glyph.train.runs import glyph_diffusion, glyph_language_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer

from command_line import sanakit
from sanakit.errors import ConfigError, DataError
from sanakit.models.perceptual import PerceptualNetwork
from sanakit.pipeline.components import load_components
from sanakit.train.checkpoint import checkpoints
from sanakit.train.distributed.ranks import Ranks
from sanakit.train.recipe import Recipe
from sanakit.train.recipes import autoencoder_run
from sanakit.train.runs.run_config import read_run
from sanakit.train.runs.summary import view_run
from tiny import AUTOENCODER, TOKENIZER, TRANSFORMER, tiny_components, write_tiny
from tiny_lm import tiny_lm_config
from tiny_recipe import TinyRecipe, drawn
from tiny_scenes import tiny_scenes
from tiny_shards import write_shards

SHORT = [
    *("device=cpu", "batch_size=2", "total_images=4", "compute_dtype=float32", "log_every=1"),
    "compile_blocks=false",
]
AUTOENCODED = [*SHORT, "held=2"]
OWN = [*AUTOENCODED, "side=64"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in, with all that the glyph recipes read, and shapes that are tiny."""
    monkeypatch.chdir(tmp_path)
    for module in (runs, autoencoder_run):
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


@pytest.fixture
def shards(place: Path) -> Path:
    return write_shards(place / "own" / "shards", {(64, 64): [4, 2], (64, 96): [2]})


def train(*arguments: object, settings: list[str] = AUTOENCODED, code: int = 0) -> str:
    """What the command says; of one that fails, its error."""
    pairs = [part for setting in settings for part in ("--set", setting)]
    out, error = sanakit("train", *arguments, *pairs, code=code)
    return error if code else out


def listed(place: Path) -> list[Path]:
    return sorted(place.rglob("*"))


# Planning.


def test_the_glyph_autoencoder_is_planned_without_a_trace(place: Path) -> None:
    before = listed(place)
    told = train("autoencoder", "--dry-run")
    weights = sum(p.numel() for p in autoencoder_run.Autoencoder(AUTOENCODER).parameters())
    assert f"parameters  {weights:,} learn, 0 are frozen" in told
    for word in ("FLOPs to train", "activations an image", "2 steps of 2", "images/s on one rank"):
        assert word in told
    assert "bucket" not in told
    assert "epoch" not in told
    assert listed(place) == before


def test_an_autoencoder_of_own_shards_is_planned_with_its_buckets_and_its_judges(
    shards: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = PerceptualNetwork(((4,), (6,)))
    monkeypatch.setattr(autoencoder_run, "load_perceptual", lambda: judge)
    before = listed(place)
    told = train("autoencoder", "--data", shards, "--dry-run", "--workers", "1", settings=OWN)
    fixed = sum(p.numel() for p in judge.parameters())
    assert f"learn, {fixed:,} are frozen" in told
    size = sum(p.nbytes for p in judge.parameters())
    assert f"frozen parts {size / 1e6:.2f} MB" in told
    assert "bucket      64 x 64 px: 6 samples\nbucket      64 x 96 px: 2 samples\n" in told
    assert "epoch       4 steps" in told
    assert "0.5 epochs" in told
    assert "time        not measured" in train(
        "autoencoder", "--data", shards, "--dry-run", "--no-measure", settings=OWN
    )
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
    told = train("diffusion", "glyph", "--dry-run", settings=SHORT)
    for word in ("FLOPs to train", "2 steps of 2", "images/s on one rank", " 0 are frozen"):
        assert word in told
    assert listed(place) == before
    frozen = train(
        "diffusion", "glyph", "--dry-run", "--no-measure", "--freeze-text", settings=SHORT
    )
    assert " 0 are frozen" not in frozen


def test_no_measure_is_refused_without_a_dry_run_for_every_stage(place: Path) -> None:
    for stage in (["autoencoder"], ["lm"], ["diffusion", "glyph"]):
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


def test_a_recipe_that_cannot_recompute_says_so() -> None:
    with pytest.raises(ConfigError, match="nothing to recompute"):
        TinyRecipe().checkpoint_gradients()


# What is noted beside a run.


def fields_of(run: Path) -> dict[str, Any]:
    pairs = [pair.partition("=") for pair in read_run(run).settings]
    return {key: json.loads(text) for key, _, text in pairs}


def test_an_autoencoder_s_run_holds_all_it_was_told_and_goes_on_without_being_told(
    place: Path, shards: Path
) -> None:
    given = [*AUTOENCODED, "perceptual=0", "side=64", "l2=0.25", "pooled=0.5"]
    train("autoencoder", "--data", "own/shards", "--out", "run", settings=given)
    file, fields = read_run("run"), fields_of(Path("run"))
    assert file.verb == "autoencoder"
    assert file.arguments == {"data": str(shards), "phase": "full"}
    assert {k: fields[k] for k in ("l1", "l2", "pooled", "perceptual", "side", "mirror")} == {
        "l1": 1.0,
        "l2": 0.25,
        "pooled": 0.5,
        "perceptual": 0,
        "side": 64,
        "mirror": True,
    }
    # The loop's, published ones of the phase included.
    assert (fields["peak_lr"], fields["weight_decay"], fields["batch_size"]) == (6.4e-5, 0.1, 2)
    changed = view_run(Path("run")).changed
    assert changed["l2"] == 0.25
    assert not changed.keys() & {"l1", "mirror", "latent_noise"}
    told = train("autoencoder", "--resume", "--out", "run", settings=["total_images=6"])
    assert "resumed at 4 images" in told
    assert checkpoints(Path("run"))[-1].name.endswith("6")
    after = fields_of(Path("run"))
    assert after == {**fields, "total_images": 6}
    refused = train("autoencoder", "--resume", "--out", "run", settings=["l2=1"], code=2)
    assert "--set l2 was 0.25 when the run began, and is 1" in refused
    refused = train("autoencoder", "--resume", "--out", "run", "--phase", "refine", code=2)
    assert "--phase was full" in refused
    assert "already holds a run" in train("autoencoder", "--out", "run", code=2)


def test_a_phase_is_gone_on_with_from_its_folder_alone(place: Path) -> None:
    train("autoencoder", "--out", "first")
    given = [*AUTOENCODED, "perceptual=0", "adversarial=0"]
    train("autoencoder", "--from", "first", "--phase", "refine", "--out", "run", settings=given)
    assert read_run("run").arguments["start"] == str(place / "first")
    told = train("autoencoder", "--resume", "--out", "run", settings=["total_images=6"])
    assert "resumed at 4 images" in told
    # Still the refinement: of the encoder nothing has moved.
    scales = [
        json.loads((place / run / "vae" / "config.json").read_text())["scaling_factor"]
        for run in ("first", "run")
    ]
    assert scales[0] == scales[1]


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
    train("diffusion", "glyph", "--samples", "8", settings=SHORT)
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
    with pytest.raises(DataError, match="run `sanakit train tokenizer` first"):
        runs._tokenizer(data, "runs/glyph-lm")
