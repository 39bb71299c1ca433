"""Tables between the original files' parameter names and ours, which are the published ones.

A table is data: one line a parameter or module, read in both directions. What the original keeps
fused (queries, keys, values) is split along its first axis, its 1x1 convolutions become matrices.
Source: diffusers scripts/convert_sana_to_diffusers.py and scripts/convert_dcae_to_diffusers.py for
the names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sanakit.errors import WeightsError
from sanakit.models.config import AutoencoderConfig, TransformerConfig

SHOWN = 5
PLACEHOLDER = re.compile(r"\{(\w)\}")


def _pattern(template: str) -> re.Pattern[str]:
    """``{p}`` is one word such as ``weight``, any other ``{letter}`` a number."""
    parts = PLACEHOLDER.split(template)
    for place in range(1, len(parts), 2):
        parts[place] = rf"(?P<{parts[place]}>{'[a-z_]+' if parts[place] == 'p' else '[0-9]+'})"
    for place in range(0, len(parts), 2):
        parts[place] = re.escape(parts[place])
    return re.compile("".join(parts))


@dataclass(frozen=True)
class Rule:
    """One original name and what it is published as, both with ``{p}``, ``{i}``... inside."""

    original: str
    published: tuple[str, ...]
    pointwise: bool = False
    """The original is a 1x1 convolution, ``out in 1 1``; ours a matrix, ``out in``."""

    def split(self, tensor: Tensor, *, name: str) -> tuple[Tensor, ...]:
        """Give the published tensors; views where possible.

        Raises:
            WeightsError: for a shape that cannot be split or is no 1x1 convolution.
        """
        pieces = len(self.published)
        if self.pointwise:
            if tensor.ndim != 4 or tensor.shape[2:] != (1, 1):
                raise WeightsError(f"{name} is {tuple(tensor.shape)}, not a 1x1 convolution")
            tensor = tensor.flatten(1)
        if pieces == 1:
            return (tensor,)
        if tensor.ndim < 1 or tensor.shape[0] % pieces:
            raise WeightsError(
                f"{name} is {tuple(tensor.shape)}: it cannot be split into {pieces} equal parts"
            )
        return tensor.chunk(pieces)

    def fuse(self, tensors: tuple[Tensor, ...], *, name: str) -> Tensor:
        """Undo :meth:`split`.

        Raises:
            WeightsError: for parts that differ in shape or dtype.
        """
        if len({(tensor.shape, tensor.dtype) for tensor in tensors}) != 1:
            shapes = ", ".join(f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in tensors)
            raise WeightsError(f"{name}: its {len(tensors)} parts differ: {shapes}")
        fused = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        return fused[:, :, None, None] if self.pointwise else fused


@dataclass(frozen=True)
class Keymap:
    """All names of one kind of model. Every original name matches at most one rule."""

    rules: tuple[Rule, ...]
    unpublished: tuple[str, ...] = ()
    """Original tensors that the published layout has no name for: derived, or of training only."""

    def to_published(self, state: Mapping[str, Tensor], *, source: str) -> dict[str, Tensor]:
        """Rename and split an original state; ``unpublished`` tensors are left out.

        Raises:
            WeightsError: for names no rule knows, the first of them listed, or a shape that a
                rule cannot take.
        """
        patterns = [(_pattern(rule.original), rule) for rule in self.rules]
        ignored = [_pattern(template) for template in self.unpublished]
        published: dict[str, Tensor] = {}
        unknown: list[str] = []
        for name, tensor in state.items():
            if any(pattern.fullmatch(name) for pattern in ignored):
                continue
            for pattern, rule in patterns:
                if match := pattern.fullmatch(name):
                    parts = rule.split(tensor, name=f"{source}: {name}")
                    names = (each.format(**match.groupdict()) for each in rule.published)
                    published |= zip(names, parts, strict=True)
                    break
            else:
                unknown.append(name)
        _refuse(unknown, source)
        return published

    def to_original(self, state: Mapping[str, Tensor], *, source: str) -> dict[str, Tensor]:
        """Undo :meth:`to_published` but for ``unpublished`` tensors, which are not there.

        Raises:
            WeightsError: for names no rule knows, parts of a fused tensor that are missing or
                differ.
        """
        patterns = [
            (_pattern(name), rule, place)
            for rule in self.rules
            for place, name in enumerate(rule.published)
        ]
        found: dict[str, tuple[Rule, Mapping[str, str], dict[int, Tensor]]] = {}
        unknown: list[str] = []
        for name, tensor in state.items():
            for pattern, rule, place in patterns:
                if match := pattern.fullmatch(name):
                    filled = match.groupdict()
                    original = rule.original.format(**filled)
                    found.setdefault(original, (rule, filled, {}))[2][place] = tensor
                    break
            else:
                unknown.append(name)
        _refuse(unknown, source)
        fused: dict[str, Tensor] = {}
        for name, (rule, words, parts) in found.items():
            if absent := [each for k, each in enumerate(rule.published) if k not in parts]:
                missing = absent[0].format(**words)
                raise WeightsError(f"{source}: {missing} is missing, {name} needs it")
            ordered = tuple(parts[place] for place in range(len(rule.published)))
            fused[name] = rule.fuse(ordered, name=f"{source}: {name}")
        return fused


def _refuse(unknown: list[str], source: str) -> None:
    if unknown:
        more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        raise WeightsError(
            f"{source}: {len(unknown)} unexpected: {', '.join(sorted(unknown)[:SHOWN])}{more}",
            hint="the file is of another model, or holds more than one",
        )


def _rules(
    names: Mapping[str, str | tuple[str, ...]], original: str = "", published: str = ""
) -> Iterable[Rule]:
    """Read a table; the prefixes go before every name, ``1x1`` at an original's end is a flag."""
    for theirs, ours in names.items():
        several = (ours,) if isinstance(ours, str) else ours
        pointwise = theirs.endswith(" 1x1")
        yield Rule(
            original + theirs.removesuffix(" 1x1"),
            tuple(published + name for name in several),
            pointwise,
        )


STEM = {
    "x_embedder.proj.{p}": "patch_embed.proj.{p}",
    "t_block.1.{p}": "time_embed.linear.{p}",
    "y_embedder.y_proj.fc1.{p}": "caption_projection.linear_1.{p}",
    "y_embedder.y_proj.fc2.{p}": "caption_projection.linear_2.{p}",
    "attention_y_norm.{p}": "caption_norm.{p}",
}
TIME = {
    "t_embedder.mlp.0.{p}": "time_embed.emb.timestep_embedder.linear_1.{p}",
    "t_embedder.mlp.2.{p}": "time_embed.emb.timestep_embedder.linear_2.{p}",
}
# Models that embed their guidance scale have both embedders one level higher.
GUIDED_TIME = {
    "t_embedder.mlp.0.{p}": "time_embed.timestep_embedder.linear_1.{p}",
    "t_embedder.mlp.2.{p}": "time_embed.timestep_embedder.linear_2.{p}",
    "cfg_embedder.mlp.0.{p}": "time_embed.guidance_embedder.linear_1.{p}",
    "cfg_embedder.mlp.2.{p}": "time_embed.guidance_embedder.linear_2.{p}",
}
BLOCK: dict[str, str | tuple[str, ...]] = {
    "scale_shift_table": "scale_shift_table",
    "attn.qkv.{p}": ("attn1.to_q.{p}", "attn1.to_k.{p}", "attn1.to_v.{p}"),
    "attn.q_norm.{p}": "attn1.norm_q.{p}",
    "attn.k_norm.{p}": "attn1.norm_k.{p}",
    "attn.proj.{p}": "attn1.to_out.0.{p}",
    "cross_attn.q_linear.{p}": "attn2.to_q.{p}",
    "cross_attn.kv_linear.{p}": ("attn2.to_k.{p}", "attn2.to_v.{p}"),
    "cross_attn.q_norm.{p}": "attn2.norm_q.{p}",
    "cross_attn.k_norm.{p}": "attn2.norm_k.{p}",
    "cross_attn.proj.{p}": "attn2.to_out.0.{p}",
    "mlp.inverted_conv.conv.{p}": "ff.conv_inverted.{p}",
    "mlp.depth_conv.conv.{p}": "ff.conv_depth.{p}",
    "mlp.point_conv.conv.{p}": "ff.conv_point.{p}",
}
HEAD = {
    "final_layer.linear.{p}": "proj_out.{p}",
    "final_layer.scale_shift_table": "scale_shift_table",
}
CONTROL = {
    "controlnet.0.before_proj.{p}": "input_block.{p}",
    "controlnet.{i}.after_proj.{p}": "controlnet_blocks.{i}.{p}",
}
# Positions are computed, the empty prompt is encoded anew, the log-variance serves distillation.
POSITIONS, NULL_TEXT = "pos_embed", "y_embedder.y_embedding"
UNPUBLISHED = (POSITIONS, NULL_TEXT, "logvar_linear.{p}")
BLOCKS, BRANCH_BLOCKS = "blocks.{i}.", "controlnet.{i}.copied_block."


def transformer_keymap(config: TransformerConfig) -> Keymap:
    """Names of a SANA 1.0, 1.5 or Sprint transformer."""
    time = GUIDED_TIME if config.guidance_embeds else TIME
    return Keymap(
        (
            *_rules({**STEM, **time, **HEAD}),
            *_rules(BLOCK, BLOCKS, "transformer_blocks.{i}."),
        ),
        UNPUBLISHED,
    )


def control_keymap() -> Keymap:
    """Names of a control branch; its stem is that of the transformer in the same file."""
    return Keymap(
        (
            *_rules({**STEM, **TIME, **CONTROL}),
            *_rules(BLOCK, BRANCH_BLOCKS, "transformer_blocks.{i}."),
        ),
        UNPUBLISHED,
    )


def original_layers(published: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Give the layers of a transformer by their original names; those fused there, all of them."""
    rules = (
        *_rules({**STEM, **TIME, **HEAD}),
        *_rules(GUIDED_TIME),
        *_rules(BLOCK, BLOCKS, "transformer_blocks.{i}."),
    )
    ending = ".{p}"
    layers = [
        (Rule(rule.original.removesuffix(ending), rule.published), rule.published[0])
        for rule in rules
        if rule.original.endswith(ending)
    ]
    patterns = [(_pattern(first.removesuffix(ending)), rule) for rule, first in layers]
    found: dict[str, tuple[str, ...]] = {}
    for name in published:
        for pattern, rule in patterns:
            if match := pattern.fullmatch(name):
                words = match.groupdict()
                found[rule.original.format(**words)] = tuple(
                    each.removesuffix(ending).format(**words) for each in rule.published
                )
    return found


AUTOENCODER_BLOCK: dict[str, str | tuple[str, ...]] = {
    "main.conv1.conv.{p}": "conv1.{p}",
    "main.conv2.conv.{p}": "conv2.{p}",
    "main.conv2.norm.{p}": "norm.{p}",
    "context_module.main.qkv.conv.{p} 1x1": (
        "attn.to_q.{p}",
        "attn.to_k.{p}",
        "attn.to_v.{p}",
    ),
    "context_module.main.aggreg.{k}.0.{p}": "attn.to_qkv_multiscale.{k}.proj_in.{p}",
    "context_module.main.aggreg.{k}.1.{p}": "attn.to_qkv_multiscale.{k}.proj_out.{p}",
    "context_module.main.proj.conv.{p} 1x1": "attn.to_out.{p}",
    "context_module.main.proj.norm.{p}": "attn.norm_out.{p}",
    "local_module.main.inverted_conv.conv.{p}": "conv_out.conv_inverted.{p}",
    "local_module.main.depth_conv.conv.{p}": "conv_out.conv_depth.{p}",
    "local_module.main.point_conv.conv.{p}": "conv_out.conv_point.{p}",
    "local_module.main.point_conv.norm.{p}": "conv_out.norm.{p}",
}


def autoencoder_keymap(config: AutoencoderConfig) -> Keymap:
    """Names of a DC-AE. Resamplers nest once more than plain convolutions, shortcuts too."""
    unshuffle = config.downsample_block_type == "pixel_unshuffle"
    down = "conv.conv.{p}" if unshuffle else "conv.{p}"
    if config.encoder_layers_per_block[0] > 0:
        entry = {"project_in.conv.{p}": "conv_in.{p}"}
    else:
        entry = {f"project_in.{down}": "conv_in.conv.{p}"}
    outlet_stem = "main.op_list.0" if config.encoder_out_shortcut else "op_list.0"
    encoder = {**entry, f"project_out.{outlet_stem}.conv.{{p}}": "conv_out.{p}"}
    inlet = "main.conv" if config.decoder_in_shortcut else "conv"
    if config.decoder_layers_per_block[0] > 0:
        outlet = {"project_out.op_list.2.conv.{p}": "conv_out.{p}"}
    else:
        outlet = {"project_out.op_list.2.conv.conv.{p}": "conv_out.conv.{p}"}
    decoder = {
        f"project_in.{inlet}.{{p}}": "conv_in.{p}",
        "project_out.op_list.0.{p}": "norm_out.{p}",
        **outlet,
    }
    stage = "stages.{i}.op_list.{j}."
    return Keymap(
        (
            *_rules(encoder, "encoder.", "encoder."),
            *_rules(decoder, "decoder.", "decoder."),
            *_rules(
                {**AUTOENCODER_BLOCK, f"main.{down}": "conv.{p}"},
                f"encoder.{stage}",
                "encoder.down_blocks.{i}.{j}.",
            ),
            *_rules(
                {**AUTOENCODER_BLOCK, "main.conv.conv.{p}": "conv.{p}"},
                f"decoder.{stage}",
                "decoder.up_blocks.{i}.{j}.",
            ),
        )
    )
