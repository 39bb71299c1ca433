"""Whole trainings: they learn, stop and go on as if they had not, split over ranks; the command."""

from __future__ import annotations

import signal
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from recipes.glyph.data.mixture import Mixture
from recipes.glyph.data.pictures import GlyphPictures
from recipes.glyph.train.diffusion import DiffusionRecipe
from recipes.glyph.train.latent_bank import open_bank
from torch.testing import assert_close
from typer.testing import CliRunner

from sanakit.cli.main import app
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.discriminator import PatchDiscriminator
from sanakit.train import checkpoint
from sanakit.train.checkpoint import checkpoints, read_tensors
from sanakit.train.config import LoopConfig
from sanakit.train.distributed.ranks import Ranks
from sanakit.train.loop import train
from sanakit.train.recipes.autoencoder import AutoencoderRecipe, AutoencoderSettings
from sanakit.train.recipes.autoencoder_run import start_autoencoder
from sanakit.train.recipes.picture_sources import GlyphSource
from sanakit.train.sample_schedule import Share
from tiny import AUTOENCODER, tiny_components
from tiny_pictures import tiny_pictures, tiny_record, write_pictures
from tiny_recipe import TinyRecipe

CONFIG = LoopConfig(
    batch_size=4,
    total_images=32,
    peak_lr=0.02,
    warmup_images=12,
    decay_share=0.5,
    average_halflife=20,
    compute_dtype="float32",
)

SPLITS = ("train", "train", "held_concept")


def quiet(line: str) -> None:
    """Take the place of print."""


def same_checkpoints(first: Path, second: Path) -> None:
    one, other = checkpoints(first)[-1], checkpoints(second)[-1]
    assert one.name == other.name
    for name in ("model", "optimizer", "average"):
        found, wanted = read_tensors(one, name), read_tensors(other, name)
        assert wanted
        assert_close(found, wanted, atol=0, rtol=0)


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stop", [1, 4])
def test_a_run_that_stops_and_resumes_is_bit_equal_to_one_that_did_not(
    tmp_path: Path, compute_dtype: Literal["float32", "bfloat16"], stop: int
) -> None:
    config = replace(CONFIG, compute_dtype=compute_dtype)
    train(TinyRecipe(), config, tmp_path / "whole", resume=False, report=quiet)
    halting = TinyRecipe(
        lambda count: signal.raise_signal(signal.SIGINT) if count == stop - 1 else None
    )
    assert not train(halting, config, tmp_path / "parts", resume=False, report=quiet)
    assert checkpoints(tmp_path / "parts")[-1].name.endswith(f"{4 * stop}")
    told: list[str] = []
    # Another start: nothing of it may be left.
    assert train(TinyRecipe(seed=9), config, tmp_path / "parts", resume=True, report=told.append)
    assert told[0].startswith(f"resumed at {4 * stop} images")
    same_checkpoints(tmp_path / "whole", tmp_path / "parts")


def test_a_run_killed_while_it_saves_goes_on_from_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(TinyRecipe(), CONFIG, tmp_path / "whole", resume=False, report=quiet)
    run = tmp_path / "parts"
    halting = TinyRecipe(lambda count: signal.raise_signal(signal.SIGTERM) if count == 2 else None)
    train(halting, CONFIG, run, resume=False, report=quiet)

    def killed(path: Path) -> None:
        if path.name == "manifest.json":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "_sync", killed)
        with pytest.raises(KeyboardInterrupt):
            train(TinyRecipe(), CONFIG, run, resume=True, report=quiet)
    assert [path.name for path in checkpoints(run)] == ["checkpoint-0000000012"]
    train(TinyRecipe(), CONFIG, run, resume=True, report=quiet)
    same_checkpoints(tmp_path / "whole", run)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> GlyphPictures:
    return tiny_pictures(tmp_path_factory.mktemp("data"))


def fixed_loss(recipe: AutoencoderRecipe | DiffusionRecipe) -> float:
    """Of one large batch with one noise."""
    batch = next(recipe.stream(Share(seed=77, batch_size=64)))
    with torch.no_grad():
        return float(recipe.loss(batch)["loss"])


def test_an_autoencoder_learns_a_few_pictures(tmp_path: Path, pictures: GlyphPictures) -> None:
    torch.manual_seed(0)
    recipe = AutoencoderRecipe(Autoencoder(AUTOENCODER), GlyphSource(pictures))
    before = fixed_loss(recipe)
    config = replace(CONFIG, total_images=160, peak_lr=5e-3, average_halflife=None)
    train(recipe, config, tmp_path, resume=False, report=quiet)
    assert fixed_loss(recipe) < 0.7 * before


def diffusion_recipe(pictures: GlyphPictures, folder: Path) -> DiffusionRecipe:
    torch.manual_seed(0)
    bank = open_bank(
        Autoencoder(AUTOENCODER),
        Mixture(pictures, composites=0),
        Mixture(pictures, split="held_style", composites=0, white=1),
        folder / "bank",
        count=16,
        ranks=Ranks(),
    )
    parts = tiny_components()
    llm, tokenizer = parts.prompts.text_encoder.llm, parts.prompts.tokenizer
    for module in (parts.transformer, llm):
        module.requires_grad_(True)
    return DiffusionRecipe(parts.transformer, llm, tokenizer, bank)


def test_a_diffusion_transformer_learns_a_few_latents(
    tmp_path: Path, pictures: GlyphPictures
) -> None:
    recipe = diffusion_recipe(pictures, tmp_path)
    before = fixed_loss(recipe)
    config = replace(CONFIG, batch_size=16, total_images=640, average_halflife=None)
    train(recipe, config, tmp_path, resume=False, report=quiet)
    assert fixed_loss(recipe) < 0.8 * before


def test_a_diffusion_run_resumes_bit_equal_with_its_captions_and_its_noise(
    tmp_path: Path, pictures: GlyphPictures
) -> None:
    config = replace(CONFIG, total_images=16, compute_dtype="bfloat16")
    train(
        diffusion_recipe(pictures, tmp_path), config, tmp_path / "whole", resume=False, report=quiet
    )
    halting = diffusion_recipe(pictures, tmp_path)
    honest = halting.prepare
    count = iter(range(10))

    def prepare(*arguments: Any) -> Any:
        if next(count) == 1:
            signal.raise_signal(signal.SIGINT)
        return honest(*arguments)

    halting.prepare = prepare
    assert not train(halting, config, tmp_path / "parts", resume=False, report=quiet)
    assert train(
        diffusion_recipe(pictures, tmp_path), config, tmp_path / "parts", resume=True, report=quiet
    )
    same_checkpoints(tmp_path / "whole", tmp_path / "parts")


def sanakit(*arguments: str, code: int) -> str:
    result = CliRunner().invoke(app, ["train", *arguments])
    assert result.exit_code == code, (result.output, result.exception)
    assert "Traceback" not in result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == result.stderr.count("hint: ") + 1
    return result.stderr


@pytest.mark.parametrize("stage", ["tokenizer", "lm", "autoencoder", "diffusion", "export"])
def test_an_unknown_recipe_or_an_absent_data_set_ends_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no recipe 'glyhp'\nhint: recipes: glyph" in sanakit(stage, "glyhp", code=2)
    assert "missing" in sanakit(stage, code=2) or stage == "tokenizer"
    assert list(tmp_path.iterdir()) == []


def test_a_stage_without_the_one_before_ends_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "data", [tiny_record(0)], size=4)
    said = sanakit("diffusion", "--data", "data", code=3)
    assert "glyph-autoencoder holds no checkpoint\nhint: train that stage first" in said
    said = sanakit("lm", "--data", "data", code=2)
    assert "rows.npy is missing\nhint: run `sanakit train tokenizer` first" in said
    said = sanakit("export", "--data", "data", "--diffusion", "runs", code=2)
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
    assert said in sanakit("lm", "--data", "data", "--set", setting, code=2)
    assert not (tmp_path / "runs").exists()


def test_refining_a_decoder_needs_an_encoder_that_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = sanakit("autoencoder", "--phase", "decoder", code=2)
    assert "hint: name what to begin with: --from glyph" in said


def test_options_of_shards_are_refused_for_other_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for option in (["--workers", "1"], ["--held", "x"], ["--preset", "glyph"]):
        assert "data/glyph holds no shards" in sanakit("autoencoder", *option, code=2)
    said = sanakit("autoencoder", "--preset", "glyph", "--from", "glyph", code=2)
    assert "hint: weights come with their own shape" in said


@pytest.mark.skipif(find_spec("sanakit.data.loader") is None, reason="this branch has no loader")
def test_shards_of_own_pictures_train_an_autoencoder_by_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiny_shards import write_shards  # type: ignore[import-not-found]

    monkeypatch.chdir(tmp_path)
    # Captured and differentiated as usual; only no C++ is written and compiled for it.
    plain = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module, **how: plain(module, backend="aot_eager", **how)
    )
    write_shards(tmp_path / "set" / "shards", {(64, 64): [4, 2], (64, 96): [2]})
    options = ["batch_size=2", "total_images=4", "perceptual=0", "side=64", "held=3"]
    pairs = [part for option in options for part in ("--set", option)]
    arguments = ["autoencoder", "--data", "set/shards", "--out", "run", *pairs]
    result = CliRunner().invoke(app, ["train", *arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    assert "held_seen_psnr" in result.output
    assert start_autoencoder(tmp_path / "run").config.scaling_factor != 1


def refinement(pictures: GlyphPictures) -> AutoencoderRecipe:
    torch.manual_seed(0)
    settings = AutoencoderSettings(
        phase="refine", adversarial=0.1, adversarial_delay=10, latent_noise=0.1, side=32
    )
    source, judge = GlyphSource(pictures), PatchDiscriminator(4, 1)
    return AutoencoderRecipe(Autoencoder(AUTOENCODER), source, settings, discriminator=judge)


def test_a_run_with_a_discriminator_resumes_bit_equal(
    tmp_path: Path, pictures: GlyphPictures
) -> None:
    config = replace(CONFIG, total_images=16, betas=(0.5, 0.9), compute_dtype="bfloat16")
    train(refinement(pictures), config, tmp_path / "whole", resume=False, report=quiet)
    halting = refinement(pictures)
    honest = halting.prepare
    count = iter(range(10))

    def prepare(*arguments: Any) -> Any:
        if next(count) == 1:
            signal.raise_signal(signal.SIGINT)
        return honest(*arguments)

    halting.prepare = prepare  # type: ignore[method-assign]
    assert not train(halting, config, tmp_path / "parts", resume=False, report=quiet)
    assert train(refinement(pictures), config, tmp_path / "parts", resume=True, report=quiet)
    same_checkpoints(tmp_path / "whole", tmp_path / "parts")
    names = read_tensors(checkpoints(tmp_path / "parts")[-1], "optimizer").keys()
    assert any(name.startswith("discriminator.last.weight") for name in names)
    assert not any(name.startswith("autoencoder.encoder") for name in names)


def test_the_embedded_autoencoder_is_tuned_by_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: GlyphPictures
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "data", [tiny_record(i, split=s) for i, s in enumerate(SPLITS)])
    options = ["batch_size=2", "total_images=2", "compile_blocks=false"]
    pairs = [part for option in options for part in ("--set", option)]
    arguments = ["autoencoder", "--phase", "decoder", "--from", "glyph", "--data", "data"]
    result = CliRunner().invoke(app, ["train", *arguments, "--out", "run", *pairs])
    assert result.exit_code == 0, (result.output, result.exception)
    kept = start_autoencoder(tmp_path / "run")
    given = start_autoencoder("glyph")
    assert f"scaling factor {given.config.scaling_factor:.6f}" in result.output
    assert_close(kept.encoder.state_dict(), given.encoder.state_dict(), rtol=0, atol=0)
    assert not torch.equal(kept.decoder.conv_in.weight, given.decoder.conv_in.weight)
