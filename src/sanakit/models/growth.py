"""Growing a trained transformer in depth: new blocks that at first add nothing."""

from __future__ import annotations

import torch

from sanakit.errors import ConfigError
from sanakit.models.transformer import LinearDiT


@torch.no_grad()
def grow_into(deep: LinearDiT, trained: LinearDiT) -> None:
    """Copy a trained transformer into a deeper one, which then computes the same function.

    The trained blocks come first and are all kept; what the further ones of ``deep`` end in is set
    to zero, and the rest of them stays as it was initialised. Source: SANA-1.5, "partial
    preservation" (reference 4.8), which drops the last tenth of the trained blocks.

    Raises:
        ConfigError: ``deep`` has fewer blocks, or another shape.
    """
    ours, theirs = deep.state_dict(), trained.state_dict()
    if len(deep.transformer_blocks) < len(trained.transformer_blocks):
        raise ConfigError(
            f"{len(trained.transformer_blocks)} blocks do not fit into "
            f"{len(deep.transformer_blocks)}",
            hint=f"layers must be at least {len(trained.transformer_blocks)}",
        )
    for name, value in theirs.items():
        if name not in ours or ours[name].shape != value.shape:
            found = tuple(ours[name].shape) if name in ours else "nothing"
            raise ConfigError(
                f"{name}: {tuple(value.shape)} in the trained transformer, {found} here",
                hint="begin with a model of the same widths",
            )
        ours[name].copy_(value)
    for block in list(deep.transformer_blocks)[len(trained.transformer_blocks) :]:
        for ending in ("attn1.to_out.0", "attn2.to_out.0", "ff.conv_point"):
            for parameter in block.get_submodule(ending).parameters():
                parameter.zero_()
