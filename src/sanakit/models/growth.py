"""Growing a trained transformer: more blocks that at first add nothing, or larger patches."""

from __future__ import annotations

import torch
from einops import repeat
from torch import Tensor

from sanakit.errors import ConfigError
from sanakit.models.transformer import LinearDiT


@torch.no_grad()
def grow_into(larger: LinearDiT, trained: LinearDiT) -> None:
    """Copy a trained transformer into a deeper one, or into one of larger patches, or both.

    The trained blocks come first and are all kept; what the further ones of ``larger`` end in is
    set to zero, and the rest of them stays as it was initialised, so that the same function is
    computed. Where patches of p x p take the place of single ones, the mean of each is seen as one
    latent was, and the velocity found for it is given to all of it: the same function of latents
    that are constant on patches. How latents differ from that mean is seen as it was initialised.
    Source of the depth: SANA-1.5, "partial preservation" (reference 4.8), which drops the last
    tenth of the trained blocks.

    Raises:
        ConfigError: ``larger`` has fewer blocks, or another shape.
    """
    ours, theirs = larger.state_dict(), trained.state_dict()
    if len(larger.transformer_blocks) < len(trained.transformer_blocks):
        raise ConfigError(
            f"{len(trained.transformer_blocks)} blocks do not fit into "
            f"{len(larger.transformer_blocks)}",
            hint=f"layers must be at least {len(trained.transformer_blocks)}",
        )
    if trained.config.patch_size == 1 < larger.config.patch_size:
        _spread(theirs, larger)
    for name, value in theirs.items():
        if name not in ours or ours[name].shape != value.shape:
            found = tuple(ours[name].shape) if name in ours else "nothing"
            raise ConfigError(
                f"{name}: {tuple(value.shape)} in the trained transformer, {found} here",
                hint="begin with a model of the same widths",
            )
        ours[name].copy_(value)
    for block in list(larger.transformer_blocks)[len(trained.transformer_blocks) :]:
        for ending in ("attn1.to_out.0", "attn2.to_out.0", "ff.conv_point"):
            for parameter in block.get_submodule(ending).parameters():
                parameter.zero_()


def _spread(state: dict[str, Tensor], larger: LinearDiT) -> None:
    """Have both ends of a transformer of single latents read and write patches."""
    patches, name = larger.config.patch_size**2, "patch_embed.proj.weight"
    own = larger.patch_embed.proj.weight
    state[name] = own - own.mean(dim=(2, 3), keepdim=True) + state[name] / patches
    for name in ("proj_out.weight", "proj_out.bias"):
        state[name] = repeat(state[name], "c ... -> (p c) ...", p=patches)
