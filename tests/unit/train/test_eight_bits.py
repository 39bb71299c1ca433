"""Eight-bit codes: their bounds, their ends, and AdamW with moments that are kept in them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.testing import assert_close

from sanakit.errors import ConfigError
from sanakit.train.optim import base
from sanakit.train.optim.adamw8bit import BLOCK, GOLDEN, AdamW8bit
from sanakit.train.optim.blocks import (
    block_count,
    decode_positive,
    decode_range,
    decode_signed,
    encode_positive,
    encode_range,
    encode_signed,
    fits_eight_bits,
)

WIDTHS = [1, 5, 8, 19]  # of blocks of 8: less than one, one, ragged


def values(rows: int, width: int) -> Tensor:
    """Rows of very different sizes; one of zeros, one constant."""
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(width))
    x *= 10.0 ** torch.linspace(-12, 6, rows)[:, None]
    x[1], x[2] = 0, 3.5
    return x


def spread(scale: Tensor, width: int) -> Tensor:
    return scale.repeat_interleave(8, dim=1)[:, :width]


def ranged(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    codes = torch.empty(x.shape, dtype=torch.uint8)
    low, scale = (torch.empty(x.shape[0], block_count(x.shape[1], 8)) for _ in range(2))
    encode_range(x, codes, low, scale, block=8)
    return codes, low, scale


@pytest.mark.parametrize("width", WIDTHS)
def test_even_steps_are_off_by_half_a_step_at_most(width: int) -> None:
    x = values(9, width)
    codes, low, scale = ranged(x)
    back = decode_range(codes, low, scale, block=8)
    assert (back - x).abs().le(0.5001 * spread(scale, width) + 1e-6 * x.abs()).all()
    assert torch.equal(back[1:3], x[1:3])  # equal values have scale 0 and come back exactly
    assert not scale[1:3].any()
    for row in range(9):
        for block in range(0, width, 8):
            part = x[row, block : block + 8]
            assert scale[row, block // 8] == pytest.approx(
                float(part.max() - part.min()) / 255, rel=1e-6
            )


def test_a_range_below_what_fp32_divides_by_is_one_value() -> None:
    x = torch.tensor([[0.0, 1e-40, 2e-40]])
    codes, low, scale = ranged(x)
    assert not codes.any()
    assert not scale.any()
    assert torch.equal(decode_range(codes, low, scale, block=8), torch.zeros(1, 3))


@pytest.mark.parametrize("width", WIDTHS)
def test_signed_roots_are_off_by_half_a_root_step_at_most(width: int) -> None:
    x = values(9, width)
    codes = torch.empty(x.shape, dtype=torch.int8)
    scale = torch.empty(9, block_count(width, 8))
    encode_signed(x, codes, scale, block=8)
    back = decode_signed(codes, scale, block=8)
    largest = spread(scale, width).clamp(min=1e-30)
    root = (x.abs() / largest).sqrt()
    bound = largest * ((root + 0.5 / 127) ** 2 - root**2)
    assert (back - x).abs().le(1.001 * bound).all()
    assert torch.equal(back[1], x[1])
    signs = back.sign() * x.sign()
    assert (signs >= 0).all()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.99])
def test_positive_roots_are_off_by_a_root_step_and_never_vanish(
    width: int, threshold: float
) -> None:
    x = values(9, width).abs()
    x[3, 0] = 1e-15  # far below a code
    codes = torch.empty(x.shape, dtype=torch.uint8)
    scale = torch.empty(9, block_count(width, 8))
    encode_positive(x, codes, scale, block=8, threshold=threshold)
    back = decode_positive(codes, scale, block=8)
    largest = spread(scale, width).clamp(min=1e-30)
    root = (x / largest).sqrt().sqrt()
    above = largest * ((root + 1 / 255) ** 4 - root**4)
    below = largest * (root**4 - (root - 1 / 255).clamp(min=0) ** 4)
    assert (back - x).le(1.001 * above + 1e-5 * x).all()
    assert (x - back).le(1.001 * below + 1e-5 * x).all()
    assert (back[x > 0] > 0).all()
    assert not back[1].any()
    assert_close(back.amax(1), x.amax(1))  # the largest is kept


def test_changes_smaller_than_a_code_add_up() -> None:
    """A moment that moves by a thousandth of its distance a step, far less than a code, arrives."""
    target = torch.tensor([[1.0, 0.01]])
    found = {}
    for walk in (True, False):
        codes, scale = torch.empty(1, 2, dtype=torch.uint8), torch.empty(1, 1)
        now = torch.tensor([[1.0, 0.04]])
        tail = []
        for step in range(6000):
            threshold = (0.5 + GOLDEN * step) % 1.0 if walk else 0.5
            now = torch.lerp(now, target, 0.001)
            encode_positive(now, codes, scale, block=8, threshold=threshold)
            now = decode_positive(codes, scale, block=8)
            tail.append(float(now[0, 1]))
        found[walk] = sum(tail[-1000:]) / 1000
    assert found[True] == pytest.approx(0.01, rel=0.05)
    assert found[False] == pytest.approx(0.04, rel=0.05)  # rounding to nearest never moves


@pytest.mark.parametrize(
    ("shape", "fits"),
    [
        ((128, 128), False),  # 16,384 are small
        ((128, 129), True),
        ((128, 129, 1, 1), True),
        ((2000, 1, 3, 3), False),  # rows of nine
        ((600, 32), True),
        ((700, 31), False),
        ((20_000,), False),
    ],
)
def test_what_is_kept_in_eight_bits(shape: tuple[int, ...], fits: bool) -> None:
    assert fits_eight_bits(torch.Size(shape)) is fits


def step(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, gradient: Tensor) -> None:
    parameter.grad = gradient.to(parameter.dtype)
    optimizer.step()


@pytest.mark.parametrize("shape", [(7,), (4, 6), (8, 1, 3, 3)])
def test_small_tensors_step_as_adamw(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    settings = {"lr": 0.1, "betas": (0.8, 0.95), "eps": 0.01, "weight_decay": 0.2}
    mine, torchs = AdamW8bit([ours], **settings), AdamW([theirs], **settings)
    for _ in range(5):
        gradient = torch.randn(shape, generator=generator)
        step(mine, ours, gradient)
        step(torchs, theirs, gradient)
    assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(60, 300), (40, 50, 3, 3)])
@pytest.mark.parametrize("in_cache", [999, 2**18])
def test_large_ones_step_as_adamw_within_their_rounding(
    shape: tuple[int, ...], in_cache: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "IN_CACHE", in_cache)
    generator = torch.Generator().manual_seed(0)
    ours, theirs = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.zeros(shape))
    if len(shape) == 4:
        ours.data = ours.data.contiguous(memory_format=torch.channels_last)
    mine, torchs = AdamW8bit([ours], lr=0.1), AdamW([theirs], lr=0.1)
    rows, width = shape[0], ours[0].numel()
    bound = torch.zeros(rows, width)
    for count in range(1, 11):
        gradient = torch.randn(shape, generator=generator)
        step(mine, ours, gradient)
        step(torchs, theirs, gradient)
        if count == 1:  # made before anything was rounded
            assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
        state = mine.state[ours]
        first = decode_signed(state["first_codes"], state["first_scale"], block=BLOCK)
        exact = torchs.state[theirs]["exp_avg"].flatten(1)
        largest = state["first_scale"].repeat_interleave(BLOCK, dim=1)[:, :width]
        # An error decays by β1; the root of what is rounded, itself off by the old error, is
        # rounded by half a step.
        root = ((exact.abs() + 0.9 * bound) / largest).sqrt()
        bound = 0.9 * bound + largest * ((root + 0.5 / 127) ** 2 - root**2)
        assert ((first - exact).abs() <= 1.001 * bound + 1e-7).all()
    second = decode_positive(state["second_codes"], state["second_scale"], block=BLOCK)
    ratio = second / torchs.state[theirs]["exp_avg_sq"].flatten(1)
    assert ratio.log().abs().mean() < 0.03
    assert (ours - theirs).norm() < 0.03 * theirs.norm()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"betas": (0.9, 0.99, 0.9)}, "two numbers"),
        ({"betas": (0.9, 1.0)}, r"in \[0, 1\)"),
        ({"eps": 0.0}, "eps=0.0 must be above 0"),
        ({"lr": -1.0}, "lr=-1.0"),
    ],
)
def test_settings_outside_their_range_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        AdamW8bit([nn.Parameter(torch.zeros(2))], **{"lr": 0.1, **settings})
