"""The config of an original DC-AE checkpoint, told from its names and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from torch import Tensor

from sanakit.errors import ConfigError, WeightsError
from sanakit.models.config import AUTOENCODERS, AutoencoderConfig, BlockType
from sanakit.weights.inference import OVERRIDE, agreed, shape_of

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
