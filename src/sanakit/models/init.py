"""How the networks start: one initialisation function a model, all randomness from a generator."""

from __future__ import annotations

import math

import torch
from torch import nn

from sanakit.models.transformer import LinearDiT

EMBED_STD = 0.02
CAPTION_GAIN = 0.01


@torch.no_grad()
def init_transformer(model: LinearDiT, *, generator: torch.Generator) -> None:
    """Set every parameter to its starting value; nothing starts at zero but biases.

    Linear weights are Xavier-uniform, those that embed time, guidance and captions normal with
    standard deviation 0.02, tables normal over the root of the width, convolutions of the Mix-FFN
    uniform by their fan-in, the gain of the caption norm 0.01. Source: reference 4.1.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, gain=_gain(name), generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            _init_convolution(module, generator)
    for embed in (model.time_embed, model.caption_projection):
        for module in embed.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=EMBED_STD, generator=generator)
    patches = model.patch_embed.proj.weight
    nn.init.xavier_uniform_(patches.view(patches.shape[0], -1), generator=generator)
    for name, parameter in model.named_parameters():
        if name.endswith("scale_shift_table"):
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5, generator=generator)
        elif name.endswith(("norm_q.weight", "norm_k.weight", "norm2.weight")):
            nn.init.ones_(parameter)
        elif name.endswith("norm2.bias"):
            nn.init.zeros_(parameter)
    nn.init.constant_(model.caption_norm.weight, CAPTION_GAIN)


def _gain(name: str) -> float:
    """Account for projections that the recipe draws as one matrix, whose fan-out is larger."""
    if name.endswith(("attn1.to_q", "attn1.to_k", "attn1.to_v")):
        return math.sqrt(2 / 4)  # (d + d) / (d + 3d)
    if name.endswith(("attn2.to_k", "attn2.to_v")):
        return math.sqrt(2 / 3)  # (d + d) / (d + 2d)
    return 1.0


def _init_convolution(module: nn.Conv2d, generator: torch.Generator) -> None:
    """Draw weight and bias uniformly within one over the root of the fan-in."""
    bound = module.weight[0].numel() ** -0.5
    nn.init.uniform_(module.weight, -bound, bound, generator=generator)
    if module.bias is not None:
        nn.init.uniform_(module.bias, -bound, bound, generator=generator)
