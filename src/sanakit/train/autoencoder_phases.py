"""The phases that an autoencoder is trained in: what each of them trains, and how.

Source: DC-AE (Chen et al. 2024), section 3.3; reference 4.6.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from torch import nn

from sanakit.errors import ConfigError
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.config import AutoencoderConfig

Phase = Literal["full", "latent", "decoder", "refine"]
"""full: everything, at low resolution, L1 and perceptual loss. latent: head of the encoder and
input of the decoder, at high resolution. decoder: the decoder. refine: its head, at low resolution,
against a discriminator. In the last two the encoder is frozen, so that latents stay valid."""
FROZEN_ENCODER = ("decoder", "refine")


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderSettings:
    """What an autoencoder minimises, and on what. Weights of losses may be 0."""

    phase: Phase = "full"
    head_stages: int = 1
    """Stages with blocks that count as the head of the encoder, the input or head of the decoder;
    the paper names these parts and does not say where they end."""
    side: int | None = None
    """Cut squares of this many px, at a random place, from what is larger."""
    mirror: bool = True
    """Mirror half of the pictures."""
    l1: float = 1.0
    pooled: float = 0.0
    """L1 of the picture pooled 4-fold: colour and shape first."""
    l2: float = 0.0
    """What PSNR measures."""
    perceptual: float = 0.0
    perceptual_side: int | None = None
    """Compare squares of this many px, at a random place; the cost falls with its square."""
    adversarial: float = 0.0
    adversarial_balance: bool = False
    """Scale the adversarial loss to the length of the others' gradient."""
    adversarial_delay: int = 0
    """Samples over which it grows from 0, while the discriminator learns."""
    equivariance: float = 0.0
    """L1 between the halved latent, decoded, and the halved picture: a smoother latent space."""
    latent_noise: float = 0.0
    """Most noise in a latent that is decoded, in its RMS: a diffusion model's latents have some."""
    held: int = 256
    """Pictures to measure on."""

    def __post_init__(self) -> None:
        for name in ("l1", "pooled", "l2", "perceptual", "adversarial", "equivariance"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must not be negative")
        for name in ("latent_noise", "adversarial_delay"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must not be negative")
        for name in ("head_stages", "held", "side", "perceptual_side"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} must be at least 1")
        if not self.l1 + self.pooled + self.l2 > 0:
            raise ConfigError("nothing asks for the picture itself", hint="set l1=1")
        for name, usual, needs, there in (
            ("head_stages", 1, "phase latent or refine", self.phase in ("latent", "refine")),
            ("perceptual_side", None, "perceptual above 0", self.perceptual > 0),
            ("adversarial_delay", 0, "adversarial above 0", self.adversarial > 0),
            ("adversarial_balance", False, "adversarial above 0", self.adversarial > 0),
            ("adversarial_balance", False, "the decoder's head trained", self.phase != "latent"),
        ):
            if getattr(self, name) != usual and not there:
                raise ConfigError(
                    f"{name}={getattr(self, name)} does nothing without {needs}",
                    hint=f"leave it out, or set {name}={json.dumps(usual)}",
                )
        if self.equivariance and self.phase in FROZEN_ENCODER:
            raise ConfigError(
                f"equivariance={self.equivariance} in phase {self.phase}: the encoder is frozen",
                hint="it shapes the latent space: phase full or latent",
            )


@dataclass(frozen=True, kw_only=True)
class Published:
    """The published hyper-parameters of a phase; what they leave open is ours."""

    settings: AutoencoderSettings
    loop: Mapping[str, Any]


PUBLISHED: Mapping[Phase, Published] = MappingProxyType(
    {
        "full": Published(
            settings=AutoencoderSettings(phase="full", perceptual=1.0, side=256),
            loop={"peak_lr": 6.4e-5, "weight_decay": 0.1, "betas": (0.9, 0.999)},
        ),
        "latent": Published(
            settings=AutoencoderSettings(phase="latent", perceptual=1.0),
            loop={"peak_lr": 1.6e-5, "weight_decay": 0.001, "betas": (0.9, 0.999)},
        ),
        # Not a phase of the paper: as the last one, all of the decoder and nobody who judges.
        "decoder": Published(
            settings=AutoencoderSettings(phase="decoder", perceptual=1.0, side=256),
            loop={"peak_lr": 5.4e-5, "weight_decay": 0.0, "betas": (0.9, 0.999)},
        ),
        # Published are rate and betas; weight of the loss and decay are not.
        "refine": Published(
            settings=AutoencoderSettings(
                phase="refine", perceptual=1.0, adversarial=0.1, side=256, adversarial_delay=10_000
            ),
            loop={"peak_lr": 5.4e-5, "weight_decay": 0.0, "betas": (0.5, 0.9)},
        ),
    }
)


def trained_parts(config: AutoencoderConfig, settings: AutoencoderSettings) -> list[str]:
    """The modules that a phase trains, by their published names; all others are frozen.

    Raises:
        ConfigError: more ``head_stages`` than the autoencoder has stages with blocks.
    """
    if settings.phase == "full":
        return ["encoder", "decoder"]
    if settings.phase == "decoder":
        return ["decoder"]
    count = settings.head_stages
    stages = {
        side: [i for i, layers in enumerate(getattr(config, f"{side}_layers_per_block")) if layers]
        for side in ("encoder", "decoder")
    }
    fewest = min(len(numbers) for numbers in stages.values())
    if count > fewest:
        raise ConfigError(f"head_stages={count}, and there are {fewest} stages with blocks")
    if settings.phase == "latent":
        return [
            *(f"encoder.down_blocks.{i}" for i in stages["encoder"][-count:]),
            "encoder.conv_out",
            "decoder.conv_in",
            *(f"decoder.up_blocks.{i}" for i in stages["decoder"][-count:]),
        ]
    finest = stages["decoder"][:count]
    return [*(f"decoder.up_blocks.{i}" for i in finest), "decoder.norm_out", "decoder.conv_out"]


def freeze_but(autoencoder: Autoencoder, parts: list[str]) -> list[nn.Module]:
    """Let only ``parts`` learn; give the batch norms that must keep their statistics, too."""
    autoencoder.requires_grad_(False)
    for name in parts:
        autoencoder.get_submodule(name).requires_grad_(True)
    return [
        module
        for module in autoencoder.modules()
        if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad
    ]
