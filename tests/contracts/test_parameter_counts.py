"""Parameter counts of the transformer and control branch presets, counted on the meta device."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sanakit.models.config import CONTROL_BRANCHES, TRANSFORMERS
from sanakit.models.controlnet import ControlBranch
from sanakit.models.transformer import LinearDiT

# Counted on diffusers' SanaTransformer2DModel and SanaControlNetModel.
PUBLISHED = {
    "sana-0.6b": 591_747_872,
    "sana-0.6b-512": 591_747_872,
    "sana-1.6b": 1_604_462_752,
    "sana-1.6b-512": 1_604_462_752,
    "sana-1.6b-2k": 1_604_462_752,
    "sana-1.6b-4k": 1_604_462_752,
    "sana1.5-1.6b": 1_604_641_952,
    "sana1.5-4.8b": 4_721_825_952,
    "sprint-0.6b": 593_501_216,
    "sprint-1.6b": 1_610_237_472,
}
PUBLISHED_BRANCHES = {"controlnet-0.6b": 168_765_696, "controlnet-1.6b": 631_576_960}
OURS = {"tiny", "glyph"}
UNRELEASED = {"sana-2.4b": ("sana-1.6b", 10), "sana1.5-3.2b": ("sana1.5-1.6b", 20)}


def on_meta(preset: str) -> LinearDiT:
    with torch.device("meta"):
        return LinearDiT(TRANSFORMERS[preset])


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("preset", PUBLISHED)
def test_a_published_preset_has_the_published_number_of_parameters(preset: str) -> None:
    assert count(on_meta(preset)) == PUBLISHED[preset]


@pytest.mark.parametrize("preset", UNRELEASED)
def test_an_unreleased_depth_is_its_sibling_with_more_of_the_same_blocks(preset: str) -> None:
    sibling, more = UNRELEASED[preset]
    model = on_meta(preset)
    assert count(model) == PUBLISHED[sibling] + more * count(model.transformer_blocks[0])


@pytest.mark.parametrize("preset", CONTROL_BRANCHES)
def test_a_control_branch_has_the_published_number_of_parameters(preset: str) -> None:
    with torch.device("meta"):
        branch = ControlBranch(CONTROL_BRANCHES[preset])
    assert count(branch) == PUBLISHED_BRANCHES[preset]


def test_positions_are_computed_and_never_stored() -> None:
    assert not list(on_meta("sana-1.6b-4k").buffers())


def test_every_preset_but_our_own_is_counted() -> None:
    assert set(TRANSFORMERS) - OURS == {*PUBLISHED, *UNRELEASED}
    assert set(CONTROL_BRANCHES) == set(PUBLISHED_BRANCHES)
