"""Losses by noise level: means of bins, over steps and as if over ranks."""

from __future__ import annotations

import pytest
import torch

from sanakit.errors import ConfigError
from sanakit.train.recipes.diffusion import LossBins


def test_means_are_those_of_each_bin_over_all_steps() -> None:
    generator = torch.Generator().manual_seed(0)
    bins = LossBins(5)
    losses, sigmas = torch.rand(7, 11, generator=generator), torch.rand(7, 11, generator=generator)
    for loss, sigma in zip(losses, sigmas, strict=True):
        bins.add(loss, sigma)
    means = bins.means()
    for index in range(5):
        inside = (sigmas >= index / 5) & (sigmas < (index + 1) / 5)
        assert means[f"loss_sigma_{index / 5:.1g}"] == pytest.approx(float(losses[inside].mean()))


def test_the_ends_have_their_bins_and_empty_ones_are_not_named() -> None:
    bins = LossBins(4)
    bins.add(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.0, 0.25, 1.0]))
    assert bins.means() == {"loss_sigma_0": 1.0, "loss_sigma_0.25": 2.0, "loss_sigma_0.75": 4.0}


def test_sums_of_ranks_are_the_sums_of_one() -> None:
    generator = torch.Generator().manual_seed(0)
    loss, sigma = torch.rand(10, generator=generator), torch.rand(10, generator=generator)
    one, first, second = LossBins(), LossBins(), LossBins()
    one.add(loss, sigma)
    first.add(loss[:3], sigma[:3])
    second.add(loss[3:], sigma[3:])
    first.sums += second.sums
    assert first.means() == pytest.approx(one.means())


def test_a_loss_that_is_not_finite_hides_no_other() -> None:
    bins = LossBins(1)
    bins.add(torch.tensor([1.0, torch.nan, torch.inf, 3.0]), torch.full((4,), 0.5))
    assert bins.means() == {"loss_sigma_0": 2.0}


def test_half_precision_losses_are_summed_in_double() -> None:
    bins = LossBins(1)
    for _ in range(3000):
        bins.add(torch.ones(1, dtype=torch.bfloat16), torch.zeros(1))
    assert bins.sums.tolist() == [[3000.0], [3000.0]]


def test_a_reset_forgets() -> None:
    bins = LossBins()
    bins.add(torch.ones(2, requires_grad=True), torch.zeros(2))
    assert not bins.sums.requires_grad
    bins.reset()
    assert bins.means() == {}


@pytest.mark.parametrize("count", [0, 101])
def test_the_number_of_bins_has_ends(count: int) -> None:
    with pytest.raises(ConfigError, match=f"bins={count} must be between 1 and 100"):
        LossBins(count)
