"""Laws of guidance: off is the conditional pass; linear in each; nothing outside its interval."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sanakit.errors import ConfigError
from sanakit.flow.grids import NoiseLevel
from sanakit.flow.guidance import Guidance, Passes
from sanakit.flow.path import noise_from_velocity, x0_from_velocity

scales = st.floats(0, 10)
LEVEL = NoiseLevel(torch.tensor(0.5), torch.tensor(500.0))


def three(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    cond, uncond, perturbed = torch.randn(3, 2, 1, 2, 2, generator=rng, dtype=torch.float64)
    return cond, uncond, perturbed


def guided(guidance: Guidance, cond: Tensor, uncond: Tensor, perturbed: Tensor) -> Tensor:
    return guidance.combine(LEVEL, cond, uncond=uncond, perturbed=perturbed)


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_off_needs_one_pass_and_returns_it() -> None:
    cond, uncond, perturbed = three()
    assert Guidance().passes(LEVEL) == Passes(uncond=False, perturbed=False)
    assert torch.equal(Guidance().combine(LEVEL, cond, uncond=None, perturbed=None), cond)
    close(guided(Guidance(), cond, uncond, perturbed), cond)


@given(scales, scales)
def test_guidance_is_the_published_sum(g: float, s: float) -> None:
    cond, uncond, perturbed = three()
    got = guided(Guidance(guidance_scale=g, pag_scale=s), cond, uncond, perturbed)
    close(got, uncond + g * (cond - uncond) + s * (cond - perturbed))


@given(scales)
def test_perturbed_guidance_stands_without_the_unconditional_pass(s: float) -> None:
    cond, _, perturbed = three()
    got = Guidance(pag_scale=s).combine(LEVEL, cond, uncond=None, perturbed=perturbed)
    close(got, cond + s * (cond - perturbed))


@given(scales, scales, st.floats(-2, 2), st.integers(1, 9))
def test_guidance_is_linear_in_its_passes(g: float, s: float, factor: float, seed: int) -> None:
    guidance = Guidance(guidance_scale=g, pag_scale=s)
    first, second = three(), three(seed)
    blend = [a + factor * b for a, b in zip(first, second, strict=True)]
    close(guided(guidance, *blend), guided(guidance, *first) + factor * guided(guidance, *second))


@given(scales, scales, st.floats(0, 1))
def test_velocity_x0_and_noise_are_guided_alike(g: float, s: float, sigma: float) -> None:
    guidance = Guidance(guidance_scale=g, pag_scale=s)
    passes, (x, *_) = three(), three(1)
    levels = torch.full((2,), sigma, dtype=torch.float64)
    for convert in (x0_from_velocity, noise_from_velocity):
        before = guided(guidance, *(convert(x, each, levels) for each in passes))
        close(before, convert(x, guided(guidance, *passes), levels))


@pytest.mark.parametrize(
    ("sigma", "acts"), [(0.0, False), (0.2, True), (0.5, True), (0.8, True), (0.9, False)]
)
def test_outside_its_interval_guidance_needs_no_pass(sigma: float, acts: bool) -> None:
    guidance = Guidance(guidance_scale=4.5, pag_scale=2.0, guidance_interval=(0.2, 0.8))
    level = NoiseLevel(torch.tensor(sigma, dtype=torch.float64), torch.tensor(1000 * sigma))
    assert guidance.passes(level) == Passes(uncond=acts, perturbed=acts)


@pytest.mark.parametrize(("timestep", "scale"), [(1000.0, 2.0), (750.0, 1.0), (300.0, 0.0)])
def test_adaptive_scale_falls_to_nothing_and_then_needs_no_pass(
    timestep: float, scale: float
) -> None:
    guidance = Guidance(pag_scale=2.0, pag_adaptive_scale=0.004)
    level = NoiseLevel(torch.tensor(timestep / 1000), torch.tensor(timestep))
    assert guidance.pag_scale_at(level) == pytest.approx(scale)
    assert guidance.passes(level).perturbed == (scale > 0)
    cond, _, perturbed = three()
    got = guidance.combine(level, cond, uncond=None, perturbed=perturbed)
    close(got, cond + scale * (cond - perturbed))


def test_half_precision_passes_are_merged_in_fp32() -> None:
    cond, uncond, perturbed = (each.bfloat16() for each in three())
    guidance = Guidance(guidance_scale=4.5, pag_scale=2.0)
    got = guided(guidance, cond, uncond, perturbed)
    assert got.dtype == torch.float32
    expected = guided(guidance, cond.double(), uncond.double(), perturbed.double())
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"guidance_interval": (0.8, 0.2)},
            r"guidance_interval=\(0.8, 0.2\) must be two rising levels",
        ),
        ({"guidance_scale": -1.0}, "guidance_scale=-1.0 must be a number from 0 up"),
        ({"pag_scale": float("nan")}, "pag_scale=nan must be a number from 0 up"),
    ],
)
def test_strengths_that_mean_nothing_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Guidance(**wrong)  # type: ignore[arg-type]
