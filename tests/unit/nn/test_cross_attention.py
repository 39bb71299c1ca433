"""Attention over few text tokens in plain products: its twin is the fused attention."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from sanakit.nn import attention
from sanakit.nn.attention import CrossAttention
from sanakit.nn.cpu import read_few
from sanakit.nn.ways import FEW


def parts(rng: torch.Generator, keys: int) -> list[Tensor]:
    shapes = [(3, 2, 9, 8), (3, 2, keys, 8), (3, 2, keys, 8)]
    return [torch.randn(shape, generator=rng, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("keys", [1, 7, 64])
@pytest.mark.parametrize("masked", [False, True])
def test_values_and_gradients_are_those_of_the_fused_attention(
    rng: torch.Generator, keys: int, masked: bool
) -> None:
    q, k, v = parts(rng, keys)
    lengths = torch.tensor([1, (keys + 1) // 2, keys])
    keep = (torch.arange(keys) < lengths[:, None])[:, None, None] if masked else None
    ours, fused = read_few(q, k, v, keep), F.scaled_dot_product_attention(q, k, v, keep)
    assert_close(ours, fused, atol=1e-6, rtol=1e-5)
    upstream = torch.randn(ours.shape, generator=rng)
    for one, other in zip(
        torch.autograd.grad(ours, (q, k, v), upstream),
        torch.autograd.grad(fused, (q, k, v), upstream),
        strict=True,
    ):
        assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_in_half_precision_the_map_is_made_in_fp32(rng: torch.Generator) -> None:
    q, k, v = (part.detach() for part in parts(rng, 16))
    exact = read_few(q, k, v, None)
    halves = read_few(q.bfloat16(), k.bfloat16(), v.bfloat16(), None)
    assert halves.dtype == torch.bfloat16
    fused = F.scaled_dot_product_attention(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert (halves - exact).abs().max() <= 2 * (fused - exact).abs().max() + 4e-3


@pytest.mark.parametrize(("keys", "learns", "plain"), [(FEW, 1, 1), (FEW, 0, 0), (FEW + 1, 1, 0)])
def test_only_what_learns_from_few_keys_is_computed_in_plain_products(
    rng: torch.Generator, keys: int, learns: int, plain: int
) -> None:
    layer = CrossAttention(2, 4, qk_norm=False, dropout=0.0)
    x, text = torch.randn(2, 5, 8, generator=rng), torch.randn(2, keys, 8, generator=rng)
    with (
        patch.object(attention, "read_few", wraps=read_few) as seen,
        torch.set_grad_enabled(bool(learns)),
    ):
        layer(x, *layer.keys_values(text), None)
    assert seen.call_count == plain
