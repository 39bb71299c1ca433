"""A transformer that grew computes what it did before, and what is new learns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sanakit.errors import ConfigError
from sanakit.models.init import grow_into, init_transformer
from sanakit.models.transformer import LinearDiT
from tiny import TRANSFORMER


def velocity(model: LinearDiT, *, side: int = 1) -> torch.Tensor:
    """For a latent that is constant on squares of ``side``."""
    rng = torch.Generator().manual_seed(5)
    x = torch.randn(2, 4, 3, 2, generator=rng)
    x = x.repeat_interleave(side, dim=2).repeat_interleave(side, dim=3)
    text = torch.randn(2, 5, TRANSFORMER.caption_channels, generator=rng)
    return model.velocity(x, torch.tensor([10.0, 700.0]), text, torch.ones(2, 5, dtype=torch.bool))


def made(layers: int, seed: int, **changes: int) -> LinearDiT:
    model = LinearDiT(replace(TRANSFORMER, num_layers=layers, **changes))
    init_transformer(model, generator=torch.Generator().manual_seed(seed))
    return model


def test_a_deeper_transformer_begins_as_the_one_it_grew_from() -> None:
    trained, deep = made(2, 0), made(4, 1)
    assert not torch.allclose(velocity(deep), velocity(trained))
    grow_into(deep, trained)
    torch.testing.assert_close(velocity(deep), velocity(trained), rtol=0, atol=1e-6)


def test_larger_patches_compute_the_same_of_latents_that_are_constant_on_them() -> None:
    trained, coarse = made(2, 0), made(3, 1, patch_size=2)
    grow_into(coarse, trained)
    fine = velocity(trained).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(velocity(coarse, side=2), fine, rtol=0, atol=1e-6)
    seen = coarse.patch_embed.proj.weight
    assert (seen - seen.mean(dim=(2, 3), keepdim=True)).abs().mean() > 0.01


def test_what_the_new_blocks_end_in_learns_at_once() -> None:
    trained, deep = made(1, 0), made(2, 1)
    grow_into(deep, trained)
    velocity(deep).square().mean().backward()
    for ending in ("attn1.to_out.0", "attn2.to_out.0", "ff.conv_point"):
        weight = deep.get_parameter(f"transformer_blocks.1.{ending}.weight")
        assert not weight.any()
        assert weight.grad is not None
        assert weight.grad.abs().sum() > 0
    assert deep.get_parameter("transformer_blocks.1.attn1.to_q.weight").any()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"2 blocks do not fit into 1\n.*at least 2"):
        grow_into(made(1, 0), made(2, 0))
    wide = LinearDiT(replace(TRANSFORMER, caption_channels=12))
    with pytest.raises(ConfigError, match="caption_projection"):
        grow_into(made(2, 0), wide)
    with pytest.raises(ConfigError, match="patch_embed"):
        grow_into(made(2, 0), made(2, 0, patch_size=2))
