"""What each phase of an autoencoder's training moves, keeps in memory, and reaches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.testing import assert_close

from sanakit.errors import ConfigError
from sanakit.train.config import LoopConfig
from sanakit.train.loop import train
from sanakit.train.recipes.autoencoder import PUBLISHED, AutoencoderObjective, Phase
from tiny_autoencoder import TinySource, recipe_of
from tiny_recipe import drawn, weights

CONFIG = LoopConfig(batch_size=2, total_images=4, peak_lr=1e-2, compute_dtype="float32")
PHASES: tuple[Phase, ...] = ("full", "latent", "decoder", "refine")


@pytest.fixture
def source() -> TinySource:
    return TinySource()


TRAINED = {
    "full": ["encoder.", "decoder."],
    "latent": [
        "encoder.down_blocks.2.",
        "encoder.conv_out.",
        "decoder.conv_in.",
        "decoder.up_blocks.2.",
    ],
    "decoder": ["decoder."],
    "refine": ["decoder.up_blocks.1.", "decoder.norm_out.", "decoder.conv_out."],
}


@pytest.mark.parametrize("phase", PHASES)
def test_a_phase_moves_exactly_its_parts(source: TinySource, tmp_path: Path, phase: Phase) -> None:
    settings = AutoencoderObjective(phase=phase, adversarial=0.1 if phase == "refine" else 0.0)
    recipe = recipe_of(source, settings, deep=True)
    before = weights(recipe.autoencoder)
    judge = weights(recipe.discriminator) if recipe.discriminator is not None else {}
    train(recipe, CONFIG, tmp_path / "run", resume=False, report=lambda line: None)
    after = weights(recipe.autoencoder)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    # Statistics of batch norms are among them; those of frozen ones stay.
    assert moved == {name for name in before if name.startswith(tuple(TRAINED[phase]))}
    assert ("decoder.up_blocks.1.1.norm.running_mean" in moved) == (phase != "latent")
    if recipe.discriminator is not None:
        assert all(
            not torch.equal(judge[n], v) for n, v in recipe.discriminator.state_dict().items()
        )


def test_heads_may_be_of_several_stages(source: TinySource) -> None:
    parts = recipe_of(
        source, AutoencoderObjective(phase="latent", head_stages=2), deep=True
    ).trained
    assert parts == [
        "encoder.down_blocks.1",
        "encoder.down_blocks.2",
        "encoder.conv_out",
        "decoder.conv_in",
        "decoder.up_blocks.1",
        "decoder.up_blocks.2",
    ]
    with pytest.raises(ConfigError, match="head_stages=3, and there are 2 stages with blocks"):
        recipe_of(source, AutoencoderObjective(phase="refine", head_stages=3), deep=True)


@pytest.mark.parametrize(
    ("phase", "keep", "free"),
    [
        ("latent", "encoder.down_blocks.2", ["encoder.conv_in", "encoder.down_blocks.1"]),
        ("decoder", "decoder", ["encoder"]),
        ("refine", "decoder.up_blocks.1", ["encoder", "decoder.conv_in", "decoder.up_blocks.2"]),
    ],
)
def test_frozen_parts_before_the_trained_ones_keep_no_activations(
    source: TinySource, phase: Phase, keep: str, free: list[str]
) -> None:
    recipe = recipe_of(source, AutoencoderObjective(phase=phase), deep=True)
    kept = dict.fromkeys([keep, *free], 0)
    inside: list[str] = []

    def enter(name: str) -> Any:
        return lambda module, arguments: inside.append(name)

    def leave(module: nn.Module, arguments: Any, output: Any) -> None:
        inside.pop()

    for name in kept:
        part = recipe.autoencoder.get_submodule(name)
        part.register_forward_pre_hook(enter(name))
        part.register_forward_hook(leave)

    def pack(tensor: Tensor) -> Tensor:
        if inside:
            kept[inside[-1]] += tensor.numel()
        return tensor

    batch = drawn(recipe, 1)
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        recipe.loss(batch)
    assert kept.pop(keep) > 0
    assert set(kept.values()) == {0}


def test_recomputed_blocks_keep_less_and_have_the_same_gradients(source: TinySource) -> None:
    kept: list[int] = []
    found = []
    for recompute in (False, True):
        recipe = recipe_of(source, AutoencoderObjective(phase="latent"), deep=True)
        if recompute:
            recipe.checkpoint_gradients()
        kept.append(0)

        def pack(tensor: Tensor) -> Tensor:
            kept[-1] += tensor.numel()
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = recipe.loss(drawn(recipe, 2))["loss"]
        loss.backward()
        named = recipe.module.named_parameters()
        found.append({name: p.grad for name, p in named if p.grad is not None})
    assert kept[1] < 0.7 * kept[0]
    assert_close(found[1], found[0])


@pytest.mark.parametrize("phase", ["full", "refine"])
def test_reconstruction_gets_better_in_20_steps(
    source: TinySource, tmp_path: Path, phase: Phase
) -> None:
    settings = AutoencoderObjective(phase=phase, perceptual=0.3, adversarial=0.05)
    recipe = recipe_of(source, settings)
    config = replace(CONFIG, batch_size=4, total_images=80, peak_lr=5e-3, betas=(0.5, 0.9))
    fixed = drawn(recipe, 32, seed=9)
    before = recipe.loss(fixed)
    train(recipe, config, tmp_path / "run", resume=False, report=lambda line: None)
    after = recipe.loss(fixed)
    for name in ("l1", "perceptual"):
        assert after[name] < 0.92 * before[name]


def test_published_phases_have_the_published_rates() -> None:
    assert {phase: PUBLISHED[phase].loop["peak_lr"] for phase in PHASES} == {
        "full": 6.4e-5,
        "latent": 1.6e-5,
        "decoder": 5.4e-5,
        "refine": 5.4e-5,
    }
    assert PUBLISHED["refine"].loop["betas"] == (0.5, 0.9)
    assert all(PUBLISHED[phase].objective.phase == phase for phase in PHASES)
