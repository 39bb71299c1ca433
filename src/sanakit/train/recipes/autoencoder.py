"""Train a deep-compression autoencoder on pictures, in the phases of `autoencoder_phases`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sanakit.errors import ConfigError
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.autoencoder_blocks import EfficientViTBlock, ResBlock
from sanakit.models.config import AutoencoderConfig
from sanakit.models.discriminator import PatchDiscriminator
from sanakit.models.perceptual import PerceptualNetwork
from sanakit.models.tiny_decoder import TinyBlock, TinyDecoder
from sanakit.nn.resample import Downsample, Upsample
from sanakit.shapes import Image, Latent, PerSample
from sanakit.train.mfu import SeenShapes, Shapes, counted
from sanakit.train.recipe import Recipe, Timers
from sanakit.train.recipes.adversarial import (
    balance,
    hinge_of_discriminator,
    hinge_of_judged,
    judged,
)
from sanakit.train.recipes.shard_dataset import PictureSource, Pixels, as_image
from sanakit.train.sample_schedule import SampleSchedule, generator_of, normal_of, uniform_of

Phase = Literal["full", "latent", "decoder", "refine", "distill"]
"""full: everything, at low resolution, L1 and perceptual loss. latent: head of the encoder and
input of the decoder, at high resolution. decoder: the decoder. refine: its head, at low resolution,
against a discriminator. distill: a tiny decoder, to give what the decoder gives. In the last three
the encoder is frozen, so that latents stay valid."""
FROZEN_ENCODER = ("decoder", "refine", "distill")


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderObjective:
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

    objective: AutoencoderObjective
    loop: Mapping[str, Any]


PUBLISHED: Mapping[Phase, Published] = MappingProxyType(
    {
        "full": Published(
            objective=AutoencoderObjective(phase="full", perceptual=1.0, side=256),
            loop={"peak_lr": 6.4e-5, "weight_decay": 0.1, "betas": (0.9, 0.999)},
        ),
        "latent": Published(
            objective=AutoencoderObjective(phase="latent", perceptual=1.0),
            loop={"peak_lr": 1.6e-5, "weight_decay": 0.001, "betas": (0.9, 0.999)},
        ),
        # Not a phase of the paper: the whole decoder, as the last one, without a discriminator.
        "decoder": Published(
            objective=AutoencoderObjective(phase="decoder", perceptual=1.0, side=256),
            loop={"peak_lr": 5.4e-5, "weight_decay": 0.0, "betas": (0.9, 0.999)},
        ),
        # Published are rate and betas; weight of the loss and decay are not.
        "refine": Published(
            objective=AutoencoderObjective(
                phase="refine", perceptual=1.0, adversarial=0.1, side=256, adversarial_delay=10_000
            ),
            loop={"peak_lr": 5.4e-5, "weight_decay": 0.0, "betas": (0.5, 0.9)},
        ),
        # Nothing of it is published.
        "distill": Published(
            objective=AutoencoderObjective(phase="distill", l2=1.0, latent_noise=0.1, side=256),
            loop={"peak_lr": 1e-3, "weight_decay": 0.0, "betas": (0.9, 0.99)},
        ),
    }
)


def trained_parts(config: AutoencoderConfig, objective: AutoencoderObjective) -> list[str]:
    """The modules that a phase trains, by their published names; all others are frozen.

    Raises:
        ConfigError: more ``head_stages`` than the autoencoder has stages with blocks.
    """
    if objective.phase == "full":
        return ["encoder", "decoder"]
    if objective.phase in ("decoder", "distill"):
        return ["decoder"]
    count = objective.head_stages
    stages = {
        side: [i for i, layers in enumerate(getattr(config, f"{side}_layers_per_block")) if layers]
        for side in ("encoder", "decoder")
    }
    fewest = min(len(numbers) for numbers in stages.values())
    if count > fewest:
        raise ConfigError(f"head_stages={count}, and there are {fewest} stages with blocks")
    if objective.phase == "latent":
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


DRAWN = 8
"""Pictures in the validation grid."""
PERCEIVED = 64
"""Held pictures that the perceptual network compares, which takes long on a CPU."""
# Keeps what is drawn here apart from what a source draws for the same sample.
_ANOTHER = 1 << 32


def psnr(image: Image, reference: Image) -> Tensor:
    """Peak signal-to-noise ratio of each picture, dB; both in [-1, 1], so the peak is 2."""
    error = (image - reference).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(4 / error.clamp_min(1e-10))


class AutoencoderBatch(NamedTuple):
    """Pictures, and what is drawn with each of them."""

    image: Pixels
    place: Float[Tensor, "b 2"]
    """Where the square is that the perceptual network compares, in [0, 1)."""
    heard: PerSample
    """How much the discriminator counts, in [0, 1]."""
    noise: Latent | None
    """For latents, in their RMS."""


class AutoencoderRecipe(Recipe[AutoencoderBatch]):
    """Reconstruction by the losses of ``objective``; all randomness is the batch's.

    ``module`` is the autoencoder; where there is a discriminator, a `ModuleDict` of both. With a
    ``teacher``, a decoder, what is to be restored is not the picture but what that makes of the
    same latent.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        source: PictureSource,
        objective: AutoencoderObjective | None = None,
        *,
        perceptual: PerceptualNetwork | None = None,
        discriminator: PatchDiscriminator | None = None,
        teacher: nn.Module | None = None,
    ) -> None:
        """Take the parts, and freeze what the phase does not train.

        Raises:
            ConfigError: a loss without its network, or a network without its loss.
        """
        self.objective = objective = objective or AutoencoderObjective()
        for name, network in (("perceptual", perceptual), ("adversarial", discriminator)):
            weight = getattr(objective, name)
            if (weight > 0) != (network is not None):
                raise ConfigError(
                    f"{name}={weight}, and its network is {'' if network else 'not '}there"
                )
        if (objective.phase == "distill") != (teacher is not None):
            raise ConfigError(
                f"phase {objective.phase}, and a teacher is {'' if teacher else 'not '}there"
            )
        self.teacher = None if teacher is None else teacher.eval().requires_grad_(False)
        self.autoencoder = autoencoder
        self.source = source
        self.perceptual = perceptual
        self.discriminator = discriminator
        self.module: nn.Module = autoencoder
        if discriminator is not None:
            self.module = nn.ModuleDict(
                {"autoencoder": autoencoder, "discriminator": discriminator}
            )
        self.trained = trained_parts(autoencoder.config, objective)
        self.fixed_norms = freeze_but(autoencoder, self.trained)
        self._seen = SeenShapes(self._operations)

    def stream(self, schedule: SampleSchedule) -> Iterator[AutoencoderBatch]:
        """Pictures of the source, cut and mirrored as the objective says."""
        objective, factor = self.objective, self.autoencoder.config.spatial_factor
        for span, pixels in zip(schedule.spans(), self.source.batches(schedule), strict=False):
            generators = [generator_of(schedule.seed + _ANOTHER, k) for k in span]
            uniform = uniform_of(generators, 6)
            if objective.side is not None:
                pixels = squares(pixels, uniform[:, :2], objective.side)
            if objective.mirror:
                mirrored = uniform[:, 2].view(-1, 1, 1, 1) < 0.5
                pixels = torch.where(mirrored, pixels.flip(-1), pixels)
            noise = None
            if objective.latent_noise:
                shape = self.autoencoder.config.latent_channels, *_over(pixels, factor)
                shares_of_it = objective.latent_noise * uniform[:, 3].view(-1, 1, 1, 1)
                noise = shares_of_it * normal_of(generators, *shape)
            grown = torch.arange(span.start, span.stop) / max(1, objective.adversarial_delay)
            heard = grown.clamp_max(1) if objective.adversarial_delay else torch.ones(len(span))
            yield AutoencoderBatch(pixels, uniform[:, 4:], heard, noise)

    def prepare(
        self, batch: AutoencoderBatch, device: torch.device, timers: Timers
    ) -> AutoencoderBatch:
        """Bring it to the device, laid out as convolutions like it, in [-1, 1]."""
        if self.perceptual is not None:
            self.perceptual.to(device)
        if self.teacher is not None:
            self.teacher.to(device)
        image = as_image(batch.image.to(device)).contiguous(memory_format=torch.channels_last)
        noise = None if batch.noise is None else batch.noise.to(device)
        return AutoencoderBatch(image, batch.place, batch.heard.to(device), noise)

    def loss(self, batch: AutoencoderBatch) -> dict[str, Tensor]:
        """All losses by name; ``loss`` is their weighted sum, with that of the discriminator."""
        for norm in self.fixed_norms:
            norm.eval()
        objective, image = self.objective, batch.image
        self._seen.add(len(image), image.shape[1:])
        latent = self.autoencoder.encode(image).latent
        noisy = latent
        if batch.noise is not None:
            # Relative to each latent's own scale.
            rms = latent.float().square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
            noisy = latent + rms * batch.noise
        restored = self.autoencoder.decode(noisy).sample.float()
        image = self._wanted(noisy, image)
        batch = batch._replace(image=image)
        terms = {"l1": F.l1_loss(restored, image), "l2": F.mse_loss(restored, image)}
        if objective.pooled:
            terms["pooled"] = F.l1_loss(F.avg_pool2d(restored, 4), F.avg_pool2d(image, 4))
        if self.perceptual is not None:
            terms["perceptual"] = self._perceived(self.perceptual, restored, batch)
        if objective.equivariance:
            terms["equivariance"] = self._inequivariance(latent, image)
        total = torch.stack([getattr(objective, name) * v for name, v in terms.items()]).sum()
        if self.discriminator is not None:
            scores = hinge_of_judged(judged(self.discriminator, restored))
            terms["adversarial"] = scores.mean()
            weight = torch.tensor(objective.adversarial)
            if objective.adversarial_balance:
                weight = weight * balance(total, terms["adversarial"], self._last_weight())
            of_both = hinge_of_discriminator(self.discriminator, image, restored).mean()
            terms["discriminator"] = of_both
            total = total + weight * (batch.heard * scores).mean() + of_both
        return {"loss": total, **{name: value.detach() for name, value in terms.items()}}

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """PSNR on held pictures, perceptual distance of the first 64; and 1 / RMS of all latents.

        Of pictures that were trained on, for want of others, names begin with ``seen_``.
        """
        autoencoder = autoencoder_in(module)
        device = next(autoencoder.parameters()).device
        values: list[Tensor] = []
        distances: list[Tensor] = []
        squared, count = 0.0, 0
        for pixels in self._held():
            image = as_image(pixels.to(device))
            latent = autoencoder.encode(image).latent
            restored = autoencoder.decode(latent).sample.float().clamp(-1, 1)
            image = self._wanted(latent, image)
            values.append(psnr(restored, image))
            squared += float(latent.double().square().sum())
            count += latent.numel()
            rest = PERCEIVED - sum(len(some) for some in distances)
            if self.perceptual is not None and rest > 0:
                distances.append(self.perceptual.to(device)(restored[:rest], image[:rest]))
        found = {"psnr": float(torch.cat(values).mean())}
        if distances:
            found["perceptual"] = float(torch.cat(distances).mean())
        if not self.source.unseen:
            found = {f"seen_{name}": value for name, value in found.items()}
        return {**found, "scaling_factor": (count / squared) ** 0.5}

    def validation_grid(self, module: nn.Module) -> npt.NDArray[Any]:
        """What is wanted of held pictures above what is made of them: ``2H 8W 3``."""
        autoencoder = autoencoder_in(module)
        device = next(autoencoder.parameters()).device
        image = as_image(next(self._held())[:DRAWN].to(device))
        latent = autoencoder.encode(image).latent
        restored = autoencoder.decode(latent).sample.float()
        both = torch.cat([self._wanted(latent, image), restored], dim=2)
        grid = ((both.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        drawn: npt.NDArray[Any] = torch.cat(list(grid), dim=2).movedim(0, -1).cpu().numpy()
        return drawn

    def blocks(self) -> Iterator[nn.Module]:
        """The convolutional blocks; attention at 4 x 4 stays eager, where it is faster."""
        for module in self.autoencoder.modules():
            if isinstance(module, ResBlock | TinyBlock | Upsample | Downsample):
                yield module

    def checkpoint_gradients(self) -> None:
        """Recompute each block in the backward pass; those with batch norms would count twice."""
        for module in self.autoencoder.modules():
            whole = isinstance(module, ResBlock | EfficientViTBlock | Upsample | Downsample)
            if whole and not any(isinstance(part, nn.BatchNorm2d) for part in module.modules()):
                module.forward = partial(
                    checkpoint, module.forward, use_reentrant=False, preserve_rng_state=False
                )

    def flops(self) -> float:
        """Of encoding and decoding, without judges, at the sizes that :meth:`loss` has seen."""
        return self._seen.mean()

    @property
    def frozen(self) -> list[nn.Module]:
        """The networks beside ``module``."""
        return [part for part in (self.perceptual, self.teacher) if part is not None]

    def _operations(self, shapes: Shapes) -> float:
        trained = self.autoencoder

        def once() -> Tensor:
            network = Autoencoder(trained.config)
            if isinstance(tiny := trained.decoder, TinyDecoder):
                network.decoder = TinyDecoder(tiny.config, scaling_factor=tiny.scaling_factor)
            return network(torch.zeros(1, *shapes[0])).sample

        return counted(once)

    @torch.no_grad()
    def _wanted(self, latent: Latent, image: Image) -> Image:
        """What decoding is to give: the picture, or what the teacher makes of the latent."""
        return image if self.teacher is None else self.teacher(latent).float().clamp(-1, 1)

    def _held(self) -> Iterator[Pixels]:
        side = self.objective.side
        for pixels in self.source.held(self.objective.held):
            middle = torch.full((len(pixels), 2), 0.5)
            yield pixels if side is None else squares(pixels, middle, side)

    def _perceived(
        self, network: PerceptualNetwork, restored: Image, batch: AutoencoderBatch
    ) -> Tensor:
        side, image = self.objective.perceptual_side, batch.image
        if side is not None and side < min(image.shape[-2:]):
            restored, image = (squares(x, batch.place, side) for x in (restored, image))
        return network(restored, image).mean()

    def _inequivariance(self, latent: Latent, image: Image) -> Tensor:
        if latent.shape[-2] % 2 or latent.shape[-1] % 2:
            raise ConfigError(
                f"equivariance: a latent of {latent.shape[-2]} x {latent.shape[-1]} has no half",
                hint=f"pictures must be multiples of {2 * self.autoencoder.config.spatial_factor}",
            )
        halved = self.autoencoder.decode(F.avg_pool2d(latent, 2)).sample.float()
        return F.l1_loss(halved, F.avg_pool2d(image, 2))

    def _last_weight(self) -> Tensor:
        last = self.autoencoder.decoder.conv_out
        convolution = last.conv if isinstance(last, Upsample) else last
        assert isinstance(convolution, nn.Conv2d)
        return convolution.weight


def autoencoder_in(module: nn.Module) -> Autoencoder:
    """The autoencoder of a recipe's module."""
    found = module["autoencoder"] if isinstance(module, nn.ModuleDict) else module
    assert isinstance(found, Autoencoder)
    return found


def squares(pixels: Pixels, place: Float[Tensor, "b 2"], side: int) -> Pixels:
    """Cut a square out of each picture; ``place`` in [0, 1) says where, from top left.

    Raises:
        ConfigError: for pictures smaller than the square.
    """
    height, width = pixels.shape[-2:]
    if min(height, width) < side:
        raise ConfigError(
            f"side={side}, and a picture has {height} x {width} px",
            hint="choose a smaller side, or build the set at a higher resolution",
        )
    room = torch.tensor([height - side + 1, width - side + 1])
    corners = (place * room).long().tolist()
    cut = [
        one[:, top : top + side, left : left + side]
        for one, (top, left) in zip(pixels, corners, strict=True)
    ]
    return torch.stack(cut)


def _over(pixels: Pixels, factor: int) -> tuple[int, int]:
    return pixels.shape[-2] // factor, pixels.shape[-1] // factor
