"""Weights to begin with and weights that are left: runs, models, folders, scaling factors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from sanakit.errors import ConfigError, DataError, MissingModelError
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.config import AutoencoderConfig
from sanakit.models.discriminator import PatchDiscriminator
from sanakit.pipeline.components import load_components
from sanakit.train.checkpoint import checkpoints, read_tensors
from sanakit.train.config import LoopConfig
from sanakit.train.loop import train
from sanakit.train.recipes.autoencoder import AutoencoderObjective, AutoencoderRecipe
from sanakit.train.recipes.autoencoder_run import (
    autoencoder_tensors,
    build,
    finish_autoencoder,
    latent_scale,
    new_run,
    run_autoencoder,
    start_autoencoder,
)
from sanakit.train.sample_schedule import SampleSchedule
from sanakit.weights.store import read_config
from tiny import AUTOENCODER, write_tiny
from tiny_autoencoder import TinySource
from tiny_recipe import weights

CONFIG = LoopConfig(batch_size=2, total_images=4, peak_lr=1e-2, compute_dtype="float32")


@pytest.fixture
def source() -> TinySource:
    return TinySource()


def trained(
    source: TinySource, run: Path, settings: AutoencoderObjective, config: AutoencoderConfig
) -> AutoencoderRecipe:
    torch.manual_seed(0)
    judge = PatchDiscriminator(4, 1) if settings.adversarial else None
    recipe = AutoencoderRecipe(Autoencoder(config), source, settings, discriminator=judge)
    averaged = replace(CONFIG, average_halflife=10)
    train(recipe, averaged, run, resume=False, report=lambda line: None)
    return recipe


def test_the_scale_makes_latents_of_unit_size(source: TinySource) -> None:
    torch.manual_seed(0)
    autoencoder = Autoencoder(AUTOENCODER).train()
    parts = [next(source.batches(SampleSchedule(seed=s, batch_size=s))) for s in (3, 5)]
    scale = latent_scale(autoencoder, parts)
    scaled = torch.cat([autoencoder.encode(part).latent.detach() for part in parts]) * scale
    assert float(scaled.square().mean()) == pytest.approx(1, rel=1e-5)
    assert autoencoder.training
    as_bytes = [((part + 1) * 127.5).round().to(torch.uint8) for part in parts]
    assert latent_scale(autoencoder, as_bytes) == pytest.approx(scale, rel=1e-2)
    with pytest.raises(DataError, match="0 values of latents sum to 0"):
        latent_scale(autoencoder, [])


def test_a_finished_run_leaves_its_averaged_weights_and_their_scale(
    source: TinySource, tmp_path: Path
) -> None:
    recipe = trained(source, tmp_path / "run", AutoencoderObjective(), AUTOENCODER)
    told: list[str] = []
    folder = finish_autoencoder(recipe, tmp_path / "run", pictures=32, report=told.append)
    assert folder == tmp_path / "run" / "vae"
    averaged = read_tensors(checkpoints(tmp_path / "run")[-1], "average")
    assert_close(load_file(folder / "diffusion_pytorch_model.safetensors"), averaged)
    factor = read_config(folder, AutoencoderConfig).scaling_factor
    assert factor != AUTOENCODER.scaling_factor
    pixels = (
        batch.image
        for _, batch in zip(
            range(2), recipe.stream(SampleSchedule(seed=0, batch_size=16)), strict=False
        )
    )
    wanted = latent_scale(run_autoencoder(tmp_path / "run", AUTOENCODER), pixels)
    assert factor == pytest.approx(wanted, rel=1e-6)
    assert told == [f"{folder}: scaling factor {factor:.5g}"]
    again = start_autoencoder(tmp_path / "run")
    assert again.config.scaling_factor == factor
    assert_close(weights(again), averaged, rtol=0, atol=0)


@pytest.mark.parametrize(("came_with", "stays"), [(0.5, True), (1.0, False)])
def test_a_frozen_encoder_keeps_the_scale_it_came_with(
    source: TinySource, tmp_path: Path, came_with: float, stays: bool
) -> None:
    config = replace(AUTOENCODER, scaling_factor=came_with)
    settings = AutoencoderObjective(phase="refine", adversarial=0.1)
    recipe = trained(source, tmp_path / "run", settings, config)
    folder = finish_autoencoder(recipe, tmp_path / "run", pictures=16, report=lambda line: None)
    factor = read_config(folder, AutoencoderConfig).scaling_factor
    assert (factor == came_with) == stays
    # The discriminator stays behind.
    assert weights(start_autoencoder(folder)).keys() == weights(recipe.autoencoder).keys()


def test_other_ranks_than_the_first_write_nothing(
    source: TinySource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = AutoencoderRecipe(Autoencoder(AUTOENCODER), source)
    monkeypatch.setenv("RANK", "1")
    assert not finish_autoencoder(recipe, tmp_path / "run").exists()


def test_tensors_of_an_autoencoder_are_found_beside_a_discriminator() -> None:
    one = torch.zeros(1)
    assert autoencoder_tensors({"encoder.x": one}) == {"encoder.x": one}
    both = {"autoencoder.encoder.x": one, "discriminator.first.weight": one}
    assert autoencoder_tensors(both) == {"encoder.x": one}


def test_the_embedded_autoencoder_is_a_start_as_it_is_used() -> None:
    found = start_autoencoder("glyph")
    used = load_components("glyph", dtype=torch.float32).autoencoder
    assert found.config == used.config
    assert_close(weights(found), weights(used), rtol=0, atol=0)
    assert next(found.parameters()).dtype == torch.float32


def test_a_model_and_a_component_and_a_run_without_its_end_are_starts_too(
    source: TinySource, tmp_path: Path
) -> None:
    model = write_tiny(tmp_path / "model")
    whole, alone = start_autoencoder(model), start_autoencoder(model / "vae")
    assert whole.config == alone.config == AUTOENCODER
    assert_close(weights(whole), weights(alone), rtol=0, atol=0)
    recipe = trained(source, tmp_path / "run", AutoencoderObjective(), AUTOENCODER)
    with pytest.raises(MissingModelError, match="does not say of what shape it is"):
        start_autoencoder(tmp_path / "run")
    found = start_autoencoder(tmp_path / "run", config=AUTOENCODER)
    assert weights(found).keys() == weights(recipe.module).keys()
    with pytest.raises(MissingModelError, match="is no model that is here"):
        start_autoencoder("glyhp")
    with pytest.raises(MissingModelError, match="holds no checkpoint"):
        run_autoencoder(tmp_path / "nothing", AUTOENCODER)


def test_settings_of_losses_and_of_the_loop_are_told_apart(tmp_path: Path) -> None:
    run = new_run(
        {"data": str(tmp_path / "shards"), "phase": "refine", "start": "glyph"},
        ["perceptual=0", "batch_size=3", "head_stages=2", "l2=0.5"],
    )
    recipe = build(run)
    assert (run.loop.batch_size, run.loop.betas) == (3, (0.5, 0.9))
    assert (recipe.objective.head_stages, recipe.objective.l2) == (2, 0.5)
    assert recipe.discriminator is not None
    assert recipe.trained[0] == "decoder.up_blocks.1"
    used = load_components("glyph").autoencoder.config.scaling_factor
    assert recipe.autoencoder.config.scaling_factor == used != 1
    assert recipe.autoencoder.encoder.conv_out.weight.is_contiguous(
        memory_format=torch.channels_last
    )
    with pytest.raises(ConfigError, match="no setting 'perceptul'"):
        new_run({"data": "x"}, ["perceptul=1"])
    with pytest.raises(ConfigError, match="no autoencoder 'glyhp'"):
        new_run({"data": "x", "preset": "glyhp"})
    with pytest.raises(ConfigError, match="--preset with --from"):
        new_run({"data": "x", "preset": "glyph", "start": "glyph"})
    with pytest.raises(ConfigError, match="--data is missing"):
        new_run({})
    with pytest.raises(ConfigError, match="--phase latent would keep weights"):
        new_run({"data": "x", "phase": "latent"})
