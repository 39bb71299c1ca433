"""Linear attention against its definition, and the laws the definition implies."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sanakit.nn.linear_attention import LinearAttention, relu_linear_attention


def quadratic_oracle(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The definition, in float64: build the n-by-n map, normalise its rows, apply it."""
    scores = q.double().relu() @ k.double().relu().transpose(-1, -2)
    return scores / scores.sum(dim=-1, keepdim=True).clamp_min(1e-30) @ v.double()


@pytest.mark.parametrize("n", [1, 7, 1024])
def test_equals_the_quadratic_definition(n: int, rng: torch.Generator) -> None:
    q, k, v = torch.randn(3, 2, 4, n, 16, generator=rng)
    expected = quadratic_oracle(q, k, v)
    torch.testing.assert_close(
        relu_linear_attention(q, k, v).double(), expected, rtol=1e-4, atol=1e-5
    )
    exact = relu_linear_attention(q.double(), k.double(), v.double())
    torch.testing.assert_close(exact, expected, rtol=1e-10, atol=1e-10)


def test_a_query_that_matches_no_key_yields_zeros_and_finite_gradients(
    rng: torch.Generator,
) -> None:
    q, k, v = torch.randn(3, 1, 1, 5, 8, generator=rng)
    q[..., 0, :] = -1.0
    inputs = [each.requires_grad_() for each in (q, k, v)]
    attended = relu_linear_attention(*inputs)
    attended.square().sum().backward()
    assert torch.equal(attended[..., 0, :], torch.zeros(1, 1, 8))
    assert all(each.grad is not None and each.grad.isfinite().all() for each in inputs)


def test_sums_of_bf16_inputs_keep_fp32_digits(rng: torch.Generator) -> None:
    q, k, v = torch.randn(3, 1, 1, 4096, 8, generator=rng).bfloat16()
    got = relu_linear_attention(q, k, v)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), quadratic_oracle(q, k, v), rtol=2**-8, atol=2**-16)


def test_keys_and_values_may_be_shuffled_together(rng: torch.Generator) -> None:
    q, k, v = torch.randn(3, 2, 3, 20, 8, generator=rng, dtype=torch.float64)
    order = torch.randperm(20, generator=rng)
    shuffled = relu_linear_attention(q, k[:, :, order], v[:, :, order])
    torch.testing.assert_close(shuffled, relu_linear_attention(q, k, v), rtol=0, atol=1e-10)


def test_equal_values_are_returned_whatever_the_weights(rng: torch.Generator) -> None:
    q, k = torch.rand(2, 2, 3, 20, 8, generator=rng, dtype=torch.float64)
    v = torch.randn(1, 3, 1, 8, generator=rng, dtype=torch.float64).expand(2, 3, 20, 8)
    torch.testing.assert_close(relu_linear_attention(q, k, v), v, rtol=0, atol=1e-10)


def module(rng: torch.Generator) -> LinearAttention:
    attention = LinearAttention(3, 4, bias=False, qk_norm=True, dropout=0.0)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, generator=rng)
    return attention


def test_a_row_outside_the_mix_keeps_its_own_values(rng: torch.Generator) -> None:
    attention = module(rng)
    x = torch.randn(2, 6, 12, generator=rng)
    mixed = attention(x, mix=torch.tensor([True, False]))
    torch.testing.assert_close(mixed[0], attention(x)[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(
        mixed[1], attention.to_out[0](attention.to_v(x[1])), rtol=0, atol=1e-5
    )


def test_samples_of_a_batch_do_not_see_each_other(rng: torch.Generator) -> None:
    attention = module(rng)
    x = torch.randn(3, 6, 12, generator=rng)
    alone = torch.cat([attention(row) for row in x.split(1)])
    torch.testing.assert_close(attention(x), alone, rtol=0, atol=1e-5)


def test_fp16_that_overflows_becomes_the_largest_finite_value() -> None:
    attention = LinearAttention(1, 4, bias=False, qk_norm=False, dropout=0.0).half()
    for parameter in attention.parameters():
        torch.nn.init.constant_(parameter, 100.0)
    y = attention(torch.full((1, 3, 4), 100.0, dtype=torch.float16))
    assert torch.equal(y, torch.full_like(y, torch.finfo(torch.float16).max))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_beyond_the_range_of_fp16_stay_finite_and_true(
    dtype: torch.dtype, rng: torch.Generator
) -> None:
    # Each sum over the keys is about 4096 * 40 * 40, a hundred times the largest fp16.
    q, k, v = (40 * torch.rand(3, 1, 1, 4096, 8, generator=rng)).to(dtype)
    got = relu_linear_attention(q, k, v)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), quadratic_oracle(q, k, v), rtol=2**-8, atol=0)
