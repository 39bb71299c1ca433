"""Statistics of the norms are fp32, whatever comes in."""

from __future__ import annotations

import pytest
import torch

from sanakit.nn.norm import ChannelRMSNorm, RMSNorm


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-4, 1.0, 3e4])
def test_squares_beyond_the_range_of_fp16_do_not_change_the_norm(
    dtype: torch.dtype, size: float, rng: torch.Generator
) -> None:
    x = (size * torch.randn(2, 5, 512, generator=rng)).clamp(-6e4, 6e4).to(dtype)
    norm = RMSNorm(512, 1e-12)
    wide = x.double()
    expected = wide / wide.square().mean(dim=-1, keepdim=True).add(1e-12).sqrt()
    torch.testing.assert_close(norm(x).double(), expected, rtol=1e-5, atol=1e-6)
    rounded = norm.to(dtype)(x)
    assert rounded.dtype == dtype
    torch.testing.assert_close(rounded.double(), expected, rtol=2**-7, atol=1e-6)


def test_many_channels_in_bf16_are_summed_with_fp32_digits() -> None:
    # A bf16 running sum of ones stops at 256: the norm of them would be off by a factor.
    ones = torch.ones(1, 4096, 1, 1, dtype=torch.bfloat16)
    torch.testing.assert_close(ChannelRMSNorm(4096, 0.0)(ones), ones.float(), rtol=1e-6, atol=0)
