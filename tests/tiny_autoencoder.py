"""An autoencoder's recipe small enough for every test."""

from __future__ import annotations

import torch

from sanakit.models.autoencoder import Autoencoder
from sanakit.models.discriminator import PatchDiscriminator
from sanakit.models.perceptual import PerceptualNetwork
from sanakit.train.autoencoder import AutoencoderRecipe
from sanakit.train.autoencoder_phases import AutoencoderSettings
from sanakit.train.picture_sources import GlyphSource
from tiny import AUTOENCODER, DEEP_AUTOENCODER


def recipe_of(
    source: GlyphSource, settings: AutoencoderSettings | None = None, *, deep: bool = False
) -> AutoencoderRecipe:
    """A recipe with tiny networks wherever ``settings`` want one."""
    torch.manual_seed(0)
    settings = settings or AutoencoderSettings()
    return AutoencoderRecipe(
        Autoencoder(DEEP_AUTOENCODER if deep else AUTOENCODER),
        source,
        settings,
        perceptual=PerceptualNetwork(((4,), (6,))) if settings.perceptual else None,
        discriminator=PatchDiscriminator(4, 1) if settings.adversarial else None,
    )
