"""How transformers start: from nothing, or grown out of a smaller one."""

from __future__ import annotations

import math

import torch
from einops import repeat
from torch import Tensor, nn

from sanakit.errors import ConfigError
from sanakit.models.transformer import LinearDiT

EMBED_STD = 0.02
CAPTION_GAIN = 0.01


@torch.no_grad()
def init_transformer(model: LinearDiT, *, generator: torch.Generator) -> None:
    """Set every parameter to its starting value; nothing starts at zero but biases.

    Linear weights are Xavier-uniform, those that embed time, guidance and captions normal with
    standard deviation 0.02, tables normal over the root of the width, convolutions of the Mix-FFN
    uniform by their fan-in, the gain of the caption norm 0.01. Source: NVlabs/Sana
    diffusion/model/nets/sana_multi_scale.py.
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


@torch.no_grad()
def grow_into(larger: LinearDiT, trained: LinearDiT) -> None:
    """Copy a trained transformer into a deeper one, or into one of larger patches, or both.

    The trained blocks come first and are all kept; what the further ones of ``larger`` end in is
    set to zero, and the rest of them stays as it was initialised, so that the same function is
    computed. Where patches of p x p take the place of single ones, the mean of each is seen as one
    latent was, and the velocity found for it is given to all of it: the same function of latents
    that are constant on patches. How latents differ from that mean is seen as it was initialised.
    Source of the depth: SANA 1.5 (arXiv 2501.18427), "partial preservation", which drops the last
    tenth of the trained blocks.
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
