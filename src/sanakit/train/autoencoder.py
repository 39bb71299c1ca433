"""Train a deep-compression autoencoder on pictures, in the phases of `autoencoder_phases`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sanakit.errors import ConfigError
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.autoencoder_blocks import EfficientViTBlock, ResBlock
from sanakit.models.discriminator import PatchDiscriminator
from sanakit.models.perceptual import PerceptualNetwork
from sanakit.nn.resample import Downsample, Upsample
from sanakit.shapes import Image, Latent, PerSample
from sanakit.train.adversarial import balance, hinge_of_discriminator, hinge_of_judged, judged
from sanakit.train.autoencoder_phases import AutoencoderSettings, freeze_but, trained_parts
from sanakit.train.flops import SeenShapes, Shapes, counted
from sanakit.train.picture_sources import PictureSource, Pixels, as_image
from sanakit.train.recipe import Recipe
from sanakit.train.shares import Share, generator_of, normal_of, uniform_of
from sanakit.train.timers import Timers

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
    """Reconstruction by the losses of ``settings``; all randomness is the batch's.

    ``module`` is the autoencoder; where there is a discriminator, a `ModuleDict` of both.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        source: PictureSource,
        settings: AutoencoderSettings | None = None,
        *,
        perceptual: PerceptualNetwork | None = None,
        discriminator: PatchDiscriminator | None = None,
    ) -> None:
        """Take the parts, and freeze what the phase does not train.

        Raises:
            ConfigError: a loss without its network, or a network without its loss.
        """
        self.settings = settings = settings or AutoencoderSettings()
        for name, network in (("perceptual", perceptual), ("adversarial", discriminator)):
            weight = getattr(settings, name)
            if (weight > 0) != (network is not None):
                raise ConfigError(
                    f"{name}={weight}, and its network is {'' if network else 'not '}there"
                )
        self.autoencoder = autoencoder
        self.source = source
        self.perceptual = perceptual
        self.discriminator = discriminator
        self.module: nn.Module = autoencoder
        if discriminator is not None:
            self.module = nn.ModuleDict(
                {"autoencoder": autoencoder, "discriminator": discriminator}
            )
        self.trained = trained_parts(autoencoder.config, settings)
        self.fixed_norms = freeze_but(autoencoder, self.trained)
        self._seen = SeenShapes(self._operations)

    def stream(self, share: Share) -> Iterator[AutoencoderBatch]:
        """Pictures of the source, cut and mirrored as the settings say."""
        settings, factor = self.settings, self.autoencoder.config.spatial_factor
        for span, pixels in zip(share.spans(), self.source.batches(share), strict=False):
            generators = [generator_of(share.seed + _ANOTHER, k) for k in span]
            uniform = uniform_of(generators, 6)
            if settings.side is not None:
                pixels = squares(pixels, uniform[:, :2], settings.side)
            if settings.mirror:
                mirrored = uniform[:, 2].view(-1, 1, 1, 1) < 0.5
                pixels = torch.where(mirrored, pixels.flip(-1), pixels)
            noise = None
            if settings.latent_noise:
                shape = self.autoencoder.config.latent_channels, *_over(pixels, factor)
                shares_of_it = settings.latent_noise * uniform[:, 3].view(-1, 1, 1, 1)
                noise = shares_of_it * normal_of(generators, *shape)
            grown = torch.arange(span.start, span.stop) / max(1, settings.adversarial_delay)
            heard = grown.clamp_max(1) if settings.adversarial_delay else torch.ones(len(span))
            yield AutoencoderBatch(pixels, uniform[:, 4:], heard, noise)

    def prepare(
        self, batch: AutoencoderBatch, device: torch.device, timers: Timers
    ) -> AutoencoderBatch:
        """Bring it to the device, laid out as convolutions like it, in [-1, 1]."""
        if self.perceptual is not None:
            self.perceptual.to(device)
        image = as_image(batch.image.to(device)).contiguous(memory_format=torch.channels_last)
        noise = None if batch.noise is None else batch.noise.to(device)
        return AutoencoderBatch(image, batch.place, batch.heard.to(device), noise)

    def loss(self, batch: AutoencoderBatch) -> dict[str, Tensor]:
        """All losses by name; ``loss`` is their weighted sum, with that of the discriminator."""
        for norm in self.fixed_norms:
            norm.eval()
        settings, image = self.settings, batch.image
        self._seen.add(len(image), image.shape[1:])
        latent = self.autoencoder.encode(image)
        noisy = latent
        if batch.noise is not None:
            # Relative to each picture's own: whoever shouts is disturbed as much.
            rms = latent.float().square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
            noisy = latent + rms * batch.noise
        restored = self.autoencoder.decode(noisy).float()
        terms = {"l1": F.l1_loss(restored, image), "l2": F.mse_loss(restored, image)}
        if settings.pooled:
            terms["pooled"] = F.l1_loss(F.avg_pool2d(restored, 4), F.avg_pool2d(image, 4))
        if self.perceptual is not None:
            terms["perceptual"] = self._perceived(self.perceptual, restored, batch)
        if settings.equivariance:
            terms["equivariance"] = self._inequivariance(latent, image)
        total = torch.stack([getattr(settings, name) * v for name, v in terms.items()]).sum()
        if self.discriminator is not None:
            scores = hinge_of_judged(judged(self.discriminator, restored))
            terms["adversarial"] = scores.mean()
            weight = torch.tensor(settings.adversarial)
            if settings.adversarial_balance:
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
            latent = autoencoder.encode(image)
            restored = autoencoder.decode(latent).float().clamp(-1, 1)
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
        """Held pictures above what is left of them: ``2H 8W 3``."""
        autoencoder = autoencoder_in(module)
        device = next(autoencoder.parameters()).device
        image = as_image(next(self._held())[:DRAWN].to(device))
        both = torch.cat([image, autoencoder(image).float()], dim=2)
        grid = ((both.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        drawn: npt.NDArray[Any] = torch.cat(list(grid), dim=2).movedim(0, -1).cpu().numpy()
        return drawn

    def blocks(self) -> Iterator[nn.Module]:
        """The convolutional blocks; attention at 4 x 4 stays eager, where it is faster."""
        for module in self.autoencoder.modules():
            if isinstance(module, ResBlock | Upsample | Downsample):
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

    def _operations(self, shapes: Shapes) -> float:
        config = self.autoencoder.config
        return counted(lambda: Autoencoder(config)(torch.zeros(1, *shapes[0])))

    def _held(self) -> Iterator[Pixels]:
        side = self.settings.side
        for pixels in self.source.held(self.settings.held):
            middle = torch.full((len(pixels), 2), 0.5)
            yield pixels if side is None else squares(pixels, middle, side)

    def _perceived(
        self, network: PerceptualNetwork, restored: Image, batch: AutoencoderBatch
    ) -> Tensor:
        side, image = self.settings.perceptual_side, batch.image
        if side is not None and side < min(image.shape[-2:]):
            restored, image = (squares(x, batch.place, side) for x in (restored, image))
        return network(restored, image).mean()

    def _inequivariance(self, latent: Latent, image: Image) -> Tensor:
        if latent.shape[-2] % 2 or latent.shape[-1] % 2:
            raise ConfigError(
                f"equivariance: a latent of {latent.shape[-2]} x {latent.shape[-1]} has no half",
                hint=f"pictures must be multiples of {2 * self.autoencoder.config.spatial_factor}",
            )
        halved = self.autoencoder.decode(F.avg_pool2d(latent, 2)).float()
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
