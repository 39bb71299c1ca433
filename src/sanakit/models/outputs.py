"""What the networks give back under their published names: by attribute, by key or by index."""

from __future__ import annotations

from dataclasses import dataclass

from transformers.utils.generic import ModelOutput

from sanakit.shapes import Image, Latent, Tokens


@dataclass
class Transformer2DModelOutput(ModelOutput):
    """``sample`` is the velocity, ``b c h w``."""

    sample: Latent


@dataclass
class SanaControlNetOutput(ModelOutput):
    """``controlnet_block_samples`` are what a control branch adds, one a block of its."""

    controlnet_block_samples: tuple[Tokens, ...]


@dataclass
class EncoderOutput(ModelOutput):
    """``latent`` is raw: the caller multiplies by ``scaling_factor``."""

    latent: Latent


@dataclass
class DecoderOutput(ModelOutput):
    """``sample`` are pictures, about [-1, 1] and not clamped."""

    sample: Image


@dataclass
class SchedulerOutput(ModelOutput):
    """``prev_sample`` is the state after a step."""

    prev_sample: Latent


@dataclass
class SCMSchedulerOutput(SchedulerOutput):
    """``pred_original_sample`` is the estimate of the clean latent."""

    pred_original_sample: Latent | None = None
