"""Runs that train an autoencoder: on the glyph set, or on shards of one's own pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from sanakit.data.glyph.pictures import GlyphPictures
from sanakit.errors import ConfigError
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.config import AUTOENCODERS, AutoencoderConfig
from sanakit.models.discriminator import PatchDiscriminator
from sanakit.train.autoencoder import AutoencoderRecipe
from sanakit.train.autoencoder_files import start_autoencoder
from sanakit.train.autoencoder_phases import PUBLISHED, AutoencoderSettings, Phase
from sanakit.train.picture_sources import GlyphSource, PictureSource, open_shards
from sanakit.train.settings import LoopConfig, with_overrides
from sanakit.weights.perceptual import load_perceptual

M = TypeVar("M", bound=nn.Module)
AutoencoderRun = tuple[AutoencoderRecipe, LoopConfig]
GLYPH_LOSSES = AutoencoderSettings(pooled=1.0, l2=1.0)
GLYPH_PHASES: Mapping[Phase, tuple[AutoencoderSettings, Mapping[str, Any]]] = {
    "full": (GLYPH_LOSSES, {"peak_lr": 1e-3, "warmup_images": 6_400, "decay_share": 0.33}),
    "latent": (replace(GLYPH_LOSSES, phase="latent"), {}),
    "decoder": (replace(GLYPH_LOSSES, phase="decoder", latent_noise=0.15), {}),
    "refine": (
        replace(GLYPH_LOSSES, phase="refine", perceptual=1.0, adversarial=0.1),
        {"betas": (0.5, 0.9), "peak_lr": 2e-4},
    ),
}
"""Losses, and what of the loop differs from phase to phase."""


def is_shards(data: str) -> bool:
    """Whether it is a folder of shards, or an address, which can be nothing else."""
    return "://" in data or (Path(data) / "index.json").is_file()


def glyph_autoencoder(
    data: Path,
    *,
    phase: Phase = "full",
    start: str | Path | None = None,
    size: int | None = None,
    settings: Sequence[str] = (),
) -> AutoencoderRun:
    """The embedded model's DC-AE: 256 px to 8 x 8 x 32, 17.5 M parameters.

    ``start`` is what `start_autoencoder` takes: the weights to begin with; ``size`` is which of the
    data set's sizes to train on, where there are several; ``settings`` are
    ``key=value``, of `AutoencoderSettings` and `LoopConfig`.
    """
    source = GlyphSource(GlyphPictures.open(data, size))
    losses, changes = GLYPH_PHASES[phase]
    usual: dict[str, Any] = {"peak_lr": 5e-4, "warmup_images": 1_600, "decay_share": 0.7}
    usual |= {"batch_size": 32, "total_images": 66_000, "evaluate_every": 300}
    loop = LoopConfig(**(usual | {"compile_blocks": True} | dict(changes)))
    return _put_together(source, losses, loop, start, AUTOENCODERS["glyph"], settings)


def shards_autoencoder(
    shards: str | Path,
    *,
    phase: Phase = "full",
    preset: str = "glyph",
    start: str | Path | None = None,
    held: str | Path | None = None,
    workers: int = 0,
    settings: Sequence[str] = (),
) -> AutoencoderRun:
    """An autoencoder of one's own pictures, by the published hyper-parameters of a phase.

    ``preset`` names the shape of one that begins at random, ``start`` the weights to begin with;
    ``held`` are shards of pictures to measure on.

    Raises:
        ConfigError: an unknown preset.
    """
    if preset not in AUTOENCODERS:
        raise ConfigError(
            f"no autoencoder {preset!r}", hint=f"there are: {', '.join(AUTOENCODERS)}"
        )
    published = PUBLISHED[phase]
    loop = LoopConfig(
        batch_size=12,  # that of the paper's figures of memory
        total_images=2_000_000,
        warmup_images=12_000,
        schedule="constant",
        **published.loop,
    )
    source = open_shards(shards, held=held, workers=workers)
    losses = published.settings
    return _put_together(source, losses, loop, start, AUTOENCODERS[preset], settings)


def _put_together(
    source: PictureSource,
    losses: AutoencoderSettings,
    loop: LoopConfig,
    start: str | Path | None,
    config: AutoencoderConfig,
    settings: Sequence[str],
) -> AutoencoderRun:
    """Put the parts together; settings that are not of the losses are of the loop."""
    of_losses = {field.name for field in fields(AutoencoderSettings)}
    mine = [pair for pair in settings if pair.partition("=")[0] in of_losses]
    losses = with_overrides(losses, mine)
    loop = with_overrides(loop, [pair for pair in settings if pair not in mine])
    torch.manual_seed(loop.seed)
    discriminator = PatchDiscriminator() if losses.adversarial else None
    perceptual = load_perceptual() if losses.perceptual else None
    module = Autoencoder(config) if start is None else start_autoencoder(start, config=config)
    recipe = AutoencoderRecipe(
        channels_last(module),
        source,
        losses,
        perceptual=perceptual,
        discriminator=discriminator,
    )
    return recipe, loop


def channels_last(module: M) -> M:
    """Lay convolution weights out as CPU kernels like them; the typed ``to`` does not know it."""
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return module
