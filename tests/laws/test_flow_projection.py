"""Laws of adaptive projected guidance: what it leaves alone, what it takes away, what it caps."""

from __future__ import annotations

import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from sanakit.errors import ConfigError
from sanakit.flow.grids import NoiseLevel
from sanakit.flow.guidance import Guidance
from sanakit.flow.projection import AdaptiveProjectedGuidance

SHAPE = (3, 4, 5, 6)
SIGMAS = (0.9, 0.6, 0.2)


def guider_of(
    eta: float = 1.0, momentum: float | None = None, norm: float = 0.0, rescale: float = 0.0
) -> AdaptiveProjectedGuidance:
    return AdaptiveProjectedGuidance(
        eta=eta,
        adaptive_projected_guidance_momentum=momentum,
        adaptive_projected_guidance_rescale=norm,
        guidance_rescale=rescale,
    )


def level_of(sigma: float) -> NoiseLevel:
    return NoiseLevel(torch.tensor(sigma, dtype=torch.float64), torch.tensor(1000 * sigma))


def drawn(seed: int = 0, count: int = 3) -> tuple[Tensor, ...]:
    """State, conditional and unconditional velocity."""
    rng = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(count, *SHAPE, generator=rng, dtype=torch.float64))


def walked(guider: AdaptiveProjectedGuidance, scale: float) -> list[Tensor]:
    """Estimates of x0 that are guided, at one level after the other."""
    found, before = [], None
    guidance = Guidance(guidance_scale=scale, guider=guider)
    for seed, sigma in enumerate(SIGMAS):
        x, cond, uncond = drawn(seed)
        level = level_of(sigma)
        uncond, before = guider.project(level, x, cond, uncond, before)
        guided = guidance.combine(level, cond, uncond=uncond, perturbed=None)
        found.append(x - sigma * guider.rescaled(level, x, guided, cond))
    return found


@given(st.floats(1, 20))
def test_with_nothing_taken_away_it_is_classifier_free_guidance(scale: float) -> None:
    for seed, found in enumerate(walked(guider_of(), scale)):
        x, cond, uncond = drawn(seed)
        assert_close(found, x - SIGMAS[seed] * (uncond + scale * (cond - uncond)))


@pytest.mark.parametrize("momentum", [None, -0.5, 0.25])
@pytest.mark.parametrize(("eta", "norm"), [(0.0, 0.0), (0.3, 2.0), (1.0, 5.0), (0.0, 100.0)])
def test_it_is_the_published_guider_on_estimates_of_x0(
    momentum: float | None, eta: float, norm: float
) -> None:
    buffer = None if momentum is None else MomentumBuffer(momentum)
    found = walked(guider_of(eta, momentum, norm), 7.0)
    for seed, sigma in enumerate(SIGMAS):
        x, cond, uncond = drawn(seed)
        ours, theirs = x - sigma * cond, x - sigma * uncond
        expected = normalized_guidance(ours, theirs, 6.0, buffer, eta, norm, True)
        assert_close(found[seed], expected, atol=1e-10, rtol=1e-10)


@given(st.floats(0.01, 1), st.floats(0.1, 50))
def test_at_eta_0_what_guides_is_orthogonal_and_no_longer_than_asked(
    sigma: float, norm: float
) -> None:
    x, cond, uncond = drawn()
    made = guider_of(0.0, None, norm).project(level_of(sigma), x, cond, uncond, None)
    update, estimate = sigma * (made.uncond - cond), x - sigma * cond
    lengths = torch.linalg.vector_norm(update.flatten(1), dim=1)
    assert float(lengths.max()) <= norm * (1 + 1e-9)
    along = (update * estimate).flatten(1).sum(dim=1) / torch.linalg.vector_norm(estimate)
    assert_close(along, torch.zeros_like(along), atol=1e-9, rtol=0)


def test_each_picture_of_a_batch_is_guided_by_itself() -> None:
    x, cond, uncond = drawn()
    guider, level = guider_of(0.2, -0.5, 3.0, 0.6), level_of(0.7)
    before = drawn(5)[0]
    together = guider.project(level, x, cond, uncond, before)
    spread = guider.rescaled(level, x, together.uncond, cond)
    for row in range(len(x)):
        one = slice(row, row + 1)
        alone = guider.project(level, x[one], cond[one], uncond[one], before[one])
        assert_close(alone.uncond, together.uncond[one])
        assert_close(alone.difference, together.difference[one])
        assert_close(guider.rescaled(level, x[one], alone.uncond, cond[one]), spread[one])


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_share_of_the_spread_is_that_of_the_conditional_estimate(share: float) -> None:
    estimates = walked(guider_of(rescale=share), 9.0)
    (x, cond, uncond), sigma, axes = drawn(0), SIGMAS[0], (1, 2, 3)
    plain = (x - sigma * (uncond + 9 * (cond - uncond))).std(dim=axes)
    asked = share * (x - sigma * cond).std(dim=axes) + (1 - share) * plain
    assert_close(estimates[0].std(dim=axes), asked)


def test_an_estimate_without_spread_stays_and_is_finite() -> None:
    x, cond, _ = drawn()
    level = level_of(0.5)
    flat = (x - 3.0) / 0.5  # its estimate of x0 is 3 everywhere
    found = guider_of(rescale=1.0).rescaled(level, x, flat, cond)
    assert_close(found, flat)
    same = guider_of(0.0, None, 1.0).project(level, x, cond, cond, None)  # nothing to guide by
    assert_close(same.uncond, cond)


def test_half_precision_is_projected_in_fp32() -> None:
    x, cond, uncond = (each.bfloat16() for each in drawn())
    guider, level = guider_of(0.0, None, 2.0), level_of(0.5)
    found = guider.project(level, x, cond, uncond, None)
    assert found.uncond.dtype == found.difference.dtype == torch.float32
    expected = guider.project(level, x.double(), cond.double(), uncond.double(), None)
    assert_close(found.uncond.double(), expected.uncond, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"eta": -0.1}, "eta=-0.1 must be a number from 0"),
        ({"eta": float("inf")}, "eta=inf must be a number"),
        ({"guidance_rescale": 1.5}, "guidance_rescale=1.5 must be a number from 0 to 1"),
        ({"adaptive_projected_guidance_momentum": -2.0}, "momentum=-2.0 must be a number from -1"),
        ({"adaptive_projected_guidance_rescale": float("nan")}, "rescale=nan must be a number"),
    ],
)
def test_values_that_mean_nothing_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AdaptiveProjectedGuidance(**wrong)  # type: ignore[arg-type]
