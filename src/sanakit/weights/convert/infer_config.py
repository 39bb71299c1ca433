"""The config of a network, found from the shapes of its weights."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from sanakit.errors import ConfigError, WeightsError
from sanakit.models.config import (
    AUTOENCODERS,
    TRANSFORMERS,
    AutoencoderConfig,
    BlockType,
    TransformerConfig,
)
from sanakit.nn.embed import sincos_axis
from sanakit.weights.convert.keymaps import POSITIONS

State = Mapping[str, Tensor]
Side = Literal["encoder", "decoder"]
HEAD_DIM = 32
"""Of all published autoencoders; told by the shapes only where attention has several scales."""
# Fields with a value a stage; those of the first line may be one word for all.
WORDS = ("encoder_block_types", "decoder_block_types", "decoder_norm_types", "decoder_act_fns")
PER_STAGE = ("encoder_block_out_channels", "decoder_block_out_channels")


class _Stage:
    """What the tensors of one stage say: its blocks, their width, and its resampler."""

    def __init__(self, state: State, side: Side, stage: int, source: str) -> None:
        self.prefix = prefix = f"{side}.stages.{stage}.op_list."
        inside = [name.removeprefix(prefix) for name in state if name.startswith(prefix)]
        found: dict[int, str] = {}
        for name in inside:
            place, _, rest = name.partition(".")
            if place.isdecimal():
                found.setdefault(int(place), _kind(rest))
        self.kinds = [found[place] for place in sorted(found)]
        if sorted(found) != list(range(len(found))) or "" in self.kinds:
            raise WeightsError(f"{source}: {prefix}* are not the blocks of a DC-AE, one a number")
        resamplers = [place for place, kind in enumerate(self.kinds) if kind == "resampler"]
        self.resampler = resamplers[0] if resamplers else None
        blocks = [place for place, kind in enumerate(self.kinds) if kind != "resampler"]
        self.count = len(blocks)
        self.block: BlockType = "ResBlock"
        self.width: int | None = None
        self.scales: tuple[int, ...] = ()
        self.head_dim: int | None = None
        self.batch_norm = any(name.endswith("running_mean") for name in inside)
        if not blocks:
            return
        kinds = {self.kinds[place] for place in blocks}
        if len(kinds) > 1 or len(resamplers) > 1:
            raise WeightsError(f"{source}: {prefix}* mixes kinds of blocks in one stage")
        first = f"{prefix}{blocks[0]}."
        if kinds == {"ResBlock"}:
            self.width = shape_of(state, first + "main.conv1.conv.weight", source)[0]
            return
        self.block = "EfficientViTBlock"
        self.width = shape_of(state, first + "context_module.main.proj.conv.weight", source)[0]
        aggreg = first + "context_module.main.aggreg."
        while (name := f"{aggreg}{len(self.scales)}.0.weight") in state:
            self.scales += (shape_of(state, name, source)[-1],)
            self.head_dim = shape_of(state, name.replace(".0.weight", ".1.weight"), source)[1]


def _kind(rest: str) -> str:
    if rest.startswith(("context_module.", "local_module.")):
        return "EfficientViTBlock"
    if re.match(r"main\.conv[12]\.", rest):
        return "ResBlock"
    return "resampler" if rest.startswith("main.conv.") else ""


def autoencoder_config(state: State, *, source: str) -> AutoencoderConfig:
    """Infer the shape of the DC-AE in ``state``, which has the original names.

    ``scaling_factor`` is that of the published model of the same shape; activations follow the
    norms, as they do in all published models (batch norm with ReLU, RMS norm with SiLU).

    Raises:
        WeightsError: tensors are missing or contradict each other. ConfigError: the published
            models of this shape differ in their scale, or there are none.
    """
    numbers = [
        int(match[1])
        for name in state
        if (match := re.match(r"(?:en|de)coder\.stages\.(\d+)\.", name))
    ]
    if not numbers:
        raise WeightsError(f"{source}: has no stages")
    stages = range(max(numbers) + 1)
    encoder = [_Stage(state, "encoder", stage, source) for stage in stages]
    decoder = [_Stage(state, "decoder", stage, source) for stage in stages]
    down = next((stage for stage in encoder if stage.resampler is not None), None)
    strided = down is not None and f"{down.prefix}{down.resampler}.main.conv.weight" in state
    out_shortcut = "encoder.project_out.main.op_list.0.conv.weight" in state
    in_shortcut = "decoder.project_in.main.conv.weight" in state
    outlet = "encoder.project_out." + "main." * out_shortcut + "op_list.0.conv.weight"
    encoder_widths, decoder_widths = _widths(encoder, source), _widths(decoder, source)
    channels = [
        shape_of(state, name, source)[1]
        for name in ("encoder.project_in.conv.weight", "encoder.project_in.conv.conv.weight")
        if name in state
    ]
    if not channels:
        raise WeightsError(f"{source}: encoder.project_in is missing")
    config = AutoencoderConfig(
        in_channels=channels[0],
        latent_channels=shape_of(state, outlet, source)[0],
        attention_head_dim=_head_dim(encoder + decoder, source),
        encoder_block_types=tuple(stage.block for stage in encoder),
        decoder_block_types=tuple(stage.block for stage in decoder),
        encoder_block_out_channels=encoder_widths,
        decoder_block_out_channels=decoder_widths,
        encoder_layers_per_block=tuple(stage.count for stage in encoder),
        decoder_layers_per_block=tuple(stage.count for stage in decoder),
        encoder_qkv_multiscales=tuple(stage.scales for stage in encoder),
        decoder_qkv_multiscales=tuple(stage.scales for stage in decoder),
        upsample_block_type=_upsampling(state, decoder, decoder_widths, source),
        downsample_block_type="conv" if strided else "pixel_unshuffle",
        decoder_norm_types=tuple("batch_norm" if s.batch_norm else "rms_norm" for s in decoder),
        decoder_act_fns=tuple("relu" if s.batch_norm else "silu" for s in decoder),
        encoder_out_shortcut=out_shortcut,
        decoder_in_shortcut=in_shortcut,
    )
    return _as_published(config, source)


def _as_published(config: AutoencoderConfig, source: str) -> AutoencoderConfig:
    """Take the scale from the published models that are otherwise equal, word for word."""
    alike = {
        name: preset
        for name, preset in AUTOENCODERS.items()
        if _spelt_out(replace(preset, scaling_factor=1.0), config) == config
    }
    factors = {name: preset.scaling_factor for name, preset in alike.items()}
    factor = agreed(factors, source=source, what="latent scale")
    return next(p for p in alike.values() if p.scaling_factor == factor)


def _spelt_out(preset: AutoencoderConfig, like: AutoencoderConfig) -> AutoencoderConfig:
    """One word a stage where a preset has one for all; an empty first stage as ``like`` has it."""
    if len(preset.encoder_block_out_channels) != len(like.encoder_block_out_channels):
        return preset
    words = {name: preset.per_stage(name) for name in WORDS}
    spelt = replace(preset, **words)  # type: ignore[arg-type]
    for side in ("encoder", "decoder"):
        if getattr(preset, f"{side}_layers_per_block")[0] == 0:
            names = [name for name in (*WORDS, *PER_STAGE) if name.startswith(side)]
            firsts = {name: (getattr(like, name)[0], *getattr(spelt, name)[1:]) for name in names}
            spelt = replace(spelt, **firsts)  # type: ignore[arg-type]
    return spelt


def _widths(stages: list[_Stage], source: str) -> tuple[int, ...]:
    """Widths by stage; the first of an autoencoder that skips it is half the next."""
    widths = [stage.width for stage in stages]
    if widths[0] is None and len(widths) > 1 and widths[1] is not None:
        widths[0] = widths[1] // 2
    known = [width for width in widths if width is not None]
    if len(known) < len(widths):
        empty = stages[widths.index(None)].prefix
        raise WeightsError(f"{source}: {empty}* holds no block; only the first stage may be empty")
    return tuple(known)


def _head_dim(stages: list[_Stage], source: str) -> int:
    told = {stage.head_dim for stage in stages if stage.head_dim is not None}
    if len(told) > 1:
        raise WeightsError(f"{source}: attention heads are {sorted(told)} wide, not of one width")
    if told:
        return told.pop()
    attention = [stage.width for stage in stages if stage.block == "EfficientViTBlock"]
    if any(width is not None and width % HEAD_DIM for width in attention):
        raise ConfigError(
            f"{source}: shapes do not tell how wide an attention head is", hint=OVERRIDE
        )
    return HEAD_DIM


def _upsampling(
    state: State, decoder: list[_Stage], widths: tuple[int, ...], source: str
) -> Literal["pixel_shuffle", "interpolate"]:
    """Both kinds have the same names; a shuffled one makes four times the channels."""
    for stage, width in zip(decoder, widths, strict=True):
        if stage.resampler is not None:
            name = f"{stage.prefix}{stage.resampler}.main.conv.conv.weight"
            made = shape_of(state, name, source)[0]
            if made not in (width, 4 * width):
                raise WeightsError(f"{source}: {name} makes {made} channels, its stage has {width}")
            return "pixel_shuffle" if made == 4 * width else "interpolate"
    raise WeightsError(f"{source}: its decoder has no upsampling stage")


Kind = Literal["transformer", "controlnet", "autoencoder"]
# How to recognise a kind: a name that every file of it has, and no file of another.
MARKS: Mapping[str, Kind] = {
    "controlnet.0.copied_block.attn.qkv.weight": "controlnet",
    "blocks.0.attn.qkv.weight": "transformer",
    "decoder.project_out.op_list.0.weight": "autoencoder",
}
OTHERS = {
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
    """Tell a transformer, a transformer with its control branch and an autoencoder apart.

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
        f"{source}: is no original SANA transformer, ControlNet or DC-AE ({looks})",
        hint="published names need no conversion: put the file beside its config.json"
        if "published" in looks
        else "convert the original .pth or .safetensors file",
    )


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


def branch_config(state: State, base: TransformerConfig, *, source: str) -> TransformerConfig:
    """Give the shape of the control branch in ``state``: its transformer's, fewer blocks."""
    return replace(base, num_layers=count_of(state, "controlnet", source))


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


def agreed(values: Mapping[str, float], *, source: str, what: str) -> float:
    """Give the value all presets of one shape agree on.

    Raises:
        ConfigError: they differ, or there are none.
    """
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    several = ", ".join(f"{name} ({value})" for name, value in values.items())
    raise ConfigError(
        f"{source}: shapes do not tell its {what}: " + (several or "no published model has them"),
        hint=OVERRIDE,
    )
