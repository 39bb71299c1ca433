"""The config of a network, found from the shapes of its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from sanakit.errors import ConfigError, WeightsError
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.config import (
    AUTOENCODERS,
    TRANSFORMERS,
    AutoencoderConfig,
    ControlBranchConfig,
    TransformerConfig,
)
from sanakit.models.tiny_decoder import TinyDecoderConfig
from sanakit.models.unfilled import unfilled
from sanakit.nn.embed import sincos_axis
from sanakit.weights.convert.keymaps import POSITIONS, autoencoder_keymap

State = Mapping[str, Tensor]
Kind = Literal["transformer", "controlnet", "autoencoder", "decoder"]
# How to recognise a kind: a name that every file of it has, and no file of another.
MARKS: Mapping[str, Kind] = {
    "controlnet.0.copied_block.attn.qkv.weight": "controlnet",
    "blocks.0.attn.qkv.weight": "transformer",
    "decoder.project_out.op_list.0.weight": "autoencoder",
    # The second layer of a row: the first one of a tiny decoder has no weights.
    "1.weight": "decoder",
}
OTHERS = {
    "1.conv.0.weight": "the encoder of a tiny autoencoder: its decoder alone is used",
    "4.conv.0.weight": "the encoder of a tiny autoencoder: its decoder alone is used",
    "patch_embed.proj.weight": "a transformer under its published names",
    "decoder.norm_out.weight": "an autoencoder under its published names",
    "lm_head.weight": "a language model",
    "model.embed_tokens.weight": "a language model",
    "embed_tokens.weight": "a language model",
}
OVERRIDE = "name the model with --config: a preset, or a config.json"
# A table stored in 16 bits is off by up to 0.004, one of a scale near 1 by more from row to row.
TABLE_TOLERANCE = 0.02


def kind_of(state: State, *, source: str) -> Kind:
    """Tell transformers, those with their control branch, autoencoders and tiny decoders apart.

    Raises:
        WeightsError: for none of them, saying what it looks like.
    """
    for name, kind in MARKS.items():
        if name in state:
            return kind
    looks = next((what for name, what in OTHERS.items() if name in state), None)
    if looks is None:
        tops = sorted({name.split(".")[0] for name in state})
        looks = f"names begin with {', '.join(tops[:6])}" if tops else "it holds no tensors"
    raise WeightsError(
        f"{source}: is no original SANA transformer, ControlNet, DC-AE or tiny decoder ({looks})",
        hint="published names need no conversion: put the file beside its config.json"
        if "published" in looks
        else "convert the original .pth or .safetensors file",
    )


def autoencoder_config(state: State, *, source: str) -> AutoencoderConfig:
    """Find the published DC-AE that has the tensors of ``state``, which has the original names.

    Raises:
        ConfigError: no published model has them, or several whose latent scales differ.
    """
    shapes = _shapes(state)
    odd = {}
    for name, preset in AUTOENCODERS.items():
        known = _published_shapes(replace(preset, scaling_factor=1.0))
        odd[name] = sorted(n for n in shapes.keys() | known if shapes.get(n) != known.get(n))
    alike = {name: AUTOENCODERS[name] for name, differ in odd.items() if not differ}
    if not alike:
        near = min(odd, key=lambda name: len(odd[name]))
        raise ConfigError(
            f"{source}: no published autoencoder has its shapes; {near} is nearest, and differs in "
            f"{len(odd[near])} tensors such as {odd[near][0]}",
            hint=OVERRIDE,
        )
    if len({preset.scaling_factor for preset in alike.values()}) > 1:
        several = ", ".join(f"{name} ({each.scaling_factor})" for name, each in alike.items())
        raise ConfigError(f"{source}: shapes leave its latent scale open: {several}", hint=OVERRIDE)
    return next(iter(alike.values()))


@cache
def _published_shapes(preset: AutoencoderConfig) -> dict[str, tuple[int, ...]]:
    """Shapes by original name; models that differ in their scale alone share one entry."""
    with unfilled():
        own = Autoencoder(preset).state_dict()
    return _shapes(autoencoder_keymap(preset).to_original(own, source="preset"))


def _shapes(state: State) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def transformer_config(state: State, *, source: str) -> TransformerConfig:
    """Infer the shape of the transformer in ``state``, which has the original names.

    Raises:
        WeightsError: tensors are missing or contradict each other. ConfigError: the shapes leave
            something open.
    """
    patches = shape_of(state, "x_embedder.proj.weight", source)
    if len(patches) != 4 or patches[2] != patches[3]:
        raise WeightsError(f"{source}: x_embedder.proj.weight is {patches}, not width c p p")
    width, channels, patch = patches[0], patches[1], patches[2]
    depth = count_of(state, "blocks", source)
    outputs = shape_of(state, "final_layer.linear.weight", source)[0]
    hidden = shape_of(state, "blocks.0.mlp.point_conv.conv.weight", source)[1]
    head_dim, cross_heads = _heads(width, source)
    size, scale = _positions(state, width, patch, source)
    return TransformerConfig(
        in_channels=channels,
        out_channels=_whole(outputs, patch**2, f"{source}: final_layer.linear.weight has", "rows"),
        num_attention_heads=width // head_dim,
        attention_head_dim=head_dim,
        num_layers=depth,
        num_cross_attention_heads=cross_heads,
        cross_attention_head_dim=width // cross_heads,
        cross_attention_dim=width,
        caption_channels=shape_of(state, "y_embedder.y_proj.fc1.weight", source)[1],
        mlp_ratio=_ratio(hidden, width),
        attention_bias="blocks.0.attn.qkv.bias" in state,
        sample_size=size,
        patch_size=patch,
        interpolation_scale=scale,
        guidance_embeds="cfg_embedder.mlp.0.weight" in state,
        qk_norm=_qk_norm(state, source),
    )


def branch_config(state: State, base: TransformerConfig, *, source: str) -> ControlBranchConfig:
    """Give the shape of the control branch in ``state``: its transformer's, fewer blocks.

    What is stored under the original names was trained in the original wiring.
    """
    depth = count_of(state, "controlnet", source)
    return ControlBranchConfig.of(base, num_layers=depth, wiring="original")


def shape_of(state: State, name: str, source: str) -> tuple[int, ...]:
    """Give a tensor's shape, or say that it is missing."""
    if name not in state:
        raise WeightsError(
            f"{source}: {name} is missing", hint="the file is cut or of another kind"
        )
    return tuple(state[name].shape)


def count_of(state: State, prefix: str, source: str) -> int:
    """Count the items of a list of modules; a gap in it is an error."""
    places = {
        int(parts[1])
        for name in state
        if (parts := name.split(".", 2))[0] == prefix and len(parts) > 1 and parts[1].isdecimal()
    }
    if absent := sorted(set(range(max(places, default=0) + 1)) - places):
        raise WeightsError(
            f"{source}: {prefix}.{absent[0]} is missing, {prefix}.{max(places, default=0)} is there"
            if places
            else f"{source}: has no {prefix}"
        )
    return len(places)


def _heads(width: int, source: str) -> tuple[int, int]:
    known = {
        config.width: (config.attention_head_dim, config.num_cross_attention_heads)
        for config in TRANSFORMERS.values()
    }
    if width not in known:
        raise ConfigError(
            f"{source}: its width is {width}; shapes do not say into how many heads it is cut, "
            f"and published models are {', '.join(map(str, sorted(known)))} wide",
            hint=OVERRIDE,
        )
    return known[width]


def _qk_norm(state: State, source: str) -> Literal["rms_norm_across_heads"] | None:
    names = ("attn.q_norm", "attn.k_norm", "cross_attn.q_norm", "cross_attn.k_norm")
    present = [f"blocks.0.{name}.weight" in state for name in names]
    if any(present) and not all(present):
        absent = [name for name, there in zip(names, present, strict=True) if not there]
        raise WeightsError(
            f"{source}: normalises queries and keys in part only, {absent[0]} is missing",
            hint="the published layout has all four norms or none",
        )
    return "rms_norm_across_heads" if all(present) else None


def _ratio(hidden: int, width: int) -> float:
    """Find the ``mlp_ratio`` whose floor is ``hidden``; the published 2.5 where it is."""
    if int(2.5 * width) == hidden:
        return 2.5
    ratio = hidden / width
    return ratio if int(ratio * width) == hidden else (hidden + 0.5) / width


def _positions(state: State, width: int, patch: int, source: str) -> tuple[int, float | None]:
    """Read ``sample_size`` and ``interpolation_scale`` off the stored positional table.

    Models without positional encoding store zeros in it, so its length is the size all the same.
    """
    table = state.get(POSITIONS)
    if table is None:
        raise ConfigError(
            f"{source}: has no {POSITIONS}, which tells the picture size it was trained at",
            hint=OVERRIDE,
        )
    side = math.isqrt(table.shape[1]) if table.ndim == 3 else 0
    if table.ndim != 3 or table.shape[0] != 1 or table.shape[2] != width or side < 1:
        raise WeightsError(f"{source}: {POSITIONS} is {tuple(table.shape)}, not 1 n {width}")
    if side**2 != table.shape[1]:
        raise ConfigError(f"{source}: {POSITIONS} is of no square grid", hint=OVERRIDE)
    row = table[0, :side].float()
    if not row.any():
        return side * patch, None
    # Position 1 lies 1 / scale from position 0, and the first frequency is one.
    sine, cosine = row[min(1, side - 1), 0].item(), row[min(1, side - 1), width // 4].item()
    angle = math.atan2(sine, cosine)
    scale = round(1 / angle, 1) if angle > 0 else 0.0
    expected = sincos_axis(side, width // 2, side / scale) if scale > 0 else None
    if expected is None or not _close(row[:, : width // 2], expected):
        raise ConfigError(f"{source}: {POSITIONS} is no sincos table", hint=OVERRIDE)
    return side * patch, scale


def _close(given: Tensor, expected: Tensor) -> bool:
    return torch.allclose(given, expected, rtol=0, atol=TABLE_TOLERANCE)


def _whole(number: int, divisor: int, what: str, unit: str) -> int:
    if number % divisor:
        raise WeightsError(f"{what} {number} {unit}, not a multiple of {divisor}")
    return number // divisor


def tiny_decoder_config(state: State, *, source: str) -> TinyDecoderConfig:
    """Find the shape of a tiny decoder, whose layers are named by their places in a row.

    Raises:
        WeightsError: no such row.
    """
    blocks = [0]
    widths: list[int] = []
    places = sorted({int(n.partition(".")[0]) for n in state if n.partition(".")[0].isdigit()})
    for place in places:
        convolution = state.get(f"{place}.weight")
        if convolution is None:
            blocks[-1] += 1
        elif convolution.ndim == 4:
            widths.append(len(convolution))
            if len(widths) > 1:
                blocks.append(0)
    first = state.get(f"{places[0]}.weight") if places else None
    if len(widths) < 2 or blocks.pop() or first is None:
        raise WeightsError(
            f"{source}: is no tiny decoder: {len(widths)} convolutions between blocks",
            hint="known is the row of layers of taesana_decoder.pth",
        )
    return TinyDecoderConfig(
        latent_channels=first.shape[1],
        out_channels=widths.pop(),
        block_out_channels=tuple(widths[::-1]),
        layers_per_block=tuple(blocks[::-1]),
    )
