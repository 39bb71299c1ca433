"""CAME: its formulas written out in fp64, its 8-bit moment within its bound, its states."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from sanakit.errors import ConfigError
from sanakit.train.optim import base
from sanakit.train.optim.blocks import decode_range
from sanakit.train.optim.came import BLOCK, CAME

SHAPES = {
    "matrix": (5, 7),
    "tall": (40, 3),
    "pointwise": (6, 4, 1, 1),
    "depthwise": (6, 1, 3, 3),
    "bias": (7,),
    "table": (2, 9),
}


def parameters(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> nn.Parameter:
    """A weight at zero: after steps of rate 1 it is the sum of its updates."""
    return nn.Parameter(torch.zeros(shape, dtype=dtype))


def gradients(shape: tuple[int, ...], steps: int) -> list[Tensor]:
    """Of rows and columns of different sizes, first large and then small; one row is zero."""
    generator = torch.Generator().manual_seed(sum(shape))
    made = []
    for step in range(steps):
        gradient = torch.randn(shape, generator=generator) * 10.0 ** (1 - step)
        if len(shape) > 1:
            gradient *= torch.linspace(0.1, 3, shape[0]).view(-1, *[1] * (len(shape) - 1))
            gradient[1] = 0
        made.append(gradient)
    return made


def written_out(
    shape: tuple[int, ...],
    made: list[Tensor],
    *,
    lr: float,
    betas: tuple[float, float, float],
    eps: tuple[float, float],
    weight_decay: float,
    clip: float,
) -> Tensor:
    """The formulas (M1)-(M8) of the module, one tensor, fp64."""
    factored = len(shape) == 2 or (len(shape) == 4 and shape[2:] == (1, 1))
    p = torch.zeros(shape[:2] if factored else shape, dtype=torch.float64)
    m, v, r, c, rr, rc = (torch.zeros((), dtype=torch.float64) for _ in range(6))
    for gradient in made:
        g = gradient.double().reshape(p.shape)
        u = g**2 + eps[0]
        if factored:
            r = betas[1] * r + (1 - betas[1]) * u.mean(dim=1)
            c = betas[1] * c + (1 - betas[1]) * u.mean(dim=0)
            hat = g / torch.sqrt(torch.outer(r / r.mean(), c))
        else:
            v = betas[1] * v + (1 - betas[1]) * u
            hat = g / torch.sqrt(v)
        hat = hat / max(1.0, float(hat.square().mean().sqrt()) / clip)
        m = betas[0] * m + (1 - betas[0]) * hat
        step = m
        if factored:
            s = (hat - m) ** 2 + eps[1]
            rr = betas[2] * rr + (1 - betas[2]) * s.mean(dim=1)
            rc = betas[2] * rc + (1 - betas[2]) * s.mean(dim=0)
            step = m / torch.sqrt(torch.outer(rr / rr.mean(), rc))
        p = p * (1 - lr * weight_decay) - lr * step
    return p.reshape(shape)


def run(optimizer: CAME, parameter: nn.Parameter, made: list[Tensor]) -> None:
    for gradient in made:
        parameter.grad = gradient.to(parameter.dtype)
        optimizer.step()


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("in_cache", [8, 2**18])
def test_five_steps_are_the_formulas(
    name: str, in_cache: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "IN_CACHE", in_cache)  # bands of a row or two, or one band
    settings = {
        "lr": 0.7,
        "betas": (0.8, 0.95, 0.99),
        "eps": (1e-30, 1e-16),
        "weight_decay": 0.1,
        "clip": 0.9,
    }
    shape = SHAPES[name]
    parameter, made = parameters(shape), gradients(shape, 5)
    run(CAME([parameter], **settings), parameter, made)
    assert_close(parameter.double(), written_out(shape, made, **settings), rtol=2e-5, atol=1e-5)


def test_the_published_settings_are_the_default() -> None:
    shape = (5, 7)
    parameter, made = parameters(shape), gradients(shape, 5)
    run(CAME([parameter], lr=0.5), parameter, made)
    published = {"betas": (0.9, 0.999, 0.9999), "eps": (1e-30, 1e-16), "clip": 1.0}
    expected = written_out(shape, made, lr=0.5, weight_decay=0.0, **published)
    assert_close(parameter.double(), expected, rtol=2e-5, atol=1e-5)


def test_channels_last_is_a_layout_and_not_another_weight() -> None:
    shape, made = (6, 4, 1, 1), gradients((6, 4, 1, 1), 3)
    plain, other = parameters(shape), parameters(shape)
    other.data = torch.empty_strided(shape, (4, 1, 4, 4)).zero_()
    run(CAME([plain], lr=0.5), plain, made)
    moved = [torch.empty_strided(shape, (4, 1, 4, 4)).copy_(gradient) for gradient in made]
    run(CAME([other], lr=0.5), other, moved)
    assert torch.equal(plain, other)


@pytest.mark.parametrize("shape", [(5, 7), (6, 1, 3, 3)])
def test_a_gradient_of_zeros_moves_nothing_and_a_huge_one_stays_finite(
    shape: tuple[int, ...],
) -> None:
    parameter = parameters(shape)
    optimizer = CAME([parameter], lr=0.5)
    run(optimizer, parameter, [torch.zeros(shape)] * 2)
    assert not parameter.any()
    run(optimizer, parameter, [1e12 * gradient for gradient in gradients(shape, 3)])
    assert torch.isfinite(parameter).all()


def test_a_weight_without_a_gradient_is_left_alone() -> None:
    parameter, other = parameters((5, 7)), parameters((5, 7))
    optimizer = CAME([parameter, other], lr=0.5, weight_decay=0.1)
    other.data.fill_(1.0)
    run(optimizer, parameter, gradients((5, 7), 1))
    assert torch.equal(other, torch.ones(5, 7))
    assert other not in optimizer.state


def test_weights_of_sixteen_bits_are_rounded_once_and_their_states_not_at_all() -> None:
    made = [gradient.bfloat16().float() for gradient in gradients((5, 7), 3)]
    half, full = parameters((5, 7), torch.bfloat16), parameters((5, 7))
    first, second = CAME([half], lr=0.5, weight_decay=0.1), CAME([full], lr=0.5, weight_decay=0.1)
    for gradient in made:
        full.data = half.detach().float()
        run(first, half, [gradient])
        run(second, full, [gradient])
        assert torch.equal(half, full.bfloat16())
    for name, slot in second.state[full].items():
        assert torch.equal(first.state[half][name], slot)


def test_states_are_factored() -> None:
    matrix, small = parameters((300, 200)), parameters((6, 1, 3, 3))
    optimizer = CAME([matrix, small], lr=0.1)
    run(optimizer, matrix, gradients((300, 200), 1))
    small.grad = torch.ones_like(small)
    optimizer.step()
    sizes = {name: tuple(slot.shape) for name, slot in optimizer.state[matrix].items()}
    assert sizes == {
        "first": (300, 200),
        "row": (300,),
        "column": (200,),
        "residual_row": (300,),
        "residual_column": (200,),
    }
    assert set(optimizer.state[small]) == {"first", "second"}


@pytest.mark.parametrize("width", [100, 2048, 5000])
def test_the_eight_bit_moment_is_within_half_a_step_of_its_blocks(width: int) -> None:
    rows = 20_000 // width + 1
    plain, coded = parameters((rows, width)), parameters((rows, width))
    full, eight = CAME([plain], lr=0.1), CAME([coded], lr=0.1, eight_bit=True)
    blocks = -(-width // BLOCK)
    bound = torch.zeros(rows, blocks, dtype=torch.float64)
    for gradient in gradients((rows, width), 5):
        run(full, plain, [gradient])
        run(eight, coded, [gradient])
        state = eight.state[coded]
        assert state["first_codes"].dtype == torch.uint8
        assert state["first_scale"].shape == (rows, blocks)
        # The moment is m = β1 m + ..: an error decays by β1 and a new rounding is added.
        bound = 0.9 * bound + state["first_scale"].double() / 2
        names = ("first_codes", "first_low", "first_scale")
        found = decode_range(*(state[name] for name in names), block=BLOCK)
        error = (found - full.state[plain]["first"]).abs()
        limit = bound.repeat_interleave(BLOCK, dim=1)[:, :width]
        assert (error <= 1.001 * limit + 1e-7).all()
    assert error.max() > 0  # or nothing was rounded


def test_the_first_step_with_eight_bits_is_that_with_thirty_two() -> None:
    shape = (150, 120)
    plain, coded = parameters(shape), parameters(shape)
    made = gradients(shape, 2)
    run(CAME([plain], lr=0.1), plain, made[:1])
    run(CAME([coded], lr=0.1, eight_bit=True), coded, made[:1])
    assert torch.equal(plain, coded)


def test_small_matrices_keep_thirty_two_bits() -> None:
    small, large = parameters((128, 128)), parameters((128, 129))
    optimizer = CAME([small, large], lr=0.1, eight_bit=True)
    for parameter in (small, large):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert "first" in optimizer.state[small]
    assert "first_codes" in optimizer.state[large]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"betas": (0.9, 0.99)}, "three numbers"),
        ({"betas": (0.9, 0.99, 1.0)}, r"in \[0, 1\)"),
        ({"eps": (1e-36, 1e-16)}, "fp32 holds"),
        ({"eps": (1e-30, 0.0)}, "published"),
        ({"clip": 0.0}, "clip=0.0 must be above 0"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
    ],
)
def test_settings_outside_their_range_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        CAME([parameters((2, 2))], **{"lr": 0.1, **settings})
