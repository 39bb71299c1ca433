"""Train a DC-AE on pictures with alpha: first phase, all weights, at low resolution."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sanakit.data.glyph.backgrounds import BACKGROUNDS
from sanakit.data.glyph.pictures import GlyphPictures, compose
from sanakit.errors import ConfigError
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.autoencoder_blocks import ResBlock
from sanakit.nn.resample import Downsample, Upsample
from sanakit.shapes import Image, Latent
from sanakit.train.recipe import Recipe
from sanakit.train.shares import (
    Share,
    chances,
    drawn_by_weight,
    generator_of,
    normal_of,
    uniform_of,
)
from sanakit.train.timers import Timers

Phase = Literal["full", "decoder"]
"""`decoder` goes on with the encoder frozen, so that latents made before stay valid."""
WHITE_SHARE = 0.5


def psnr(image: Image, reference: Image) -> Tensor:
    """Peak signal-to-noise ratio of each picture, dB; both in [-1, 1], so the peak is 2."""
    error = (image - reference).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(4 / error.clamp_min(1e-10))


def backgrounds_of(uniform: Float[Tensor, "b 5"]) -> npt.NDArray[np.float32]:
    """Half white, a quarter named colours, a quarter any colour; ``b 3`` in [0, 1]."""
    named = torch.tensor(list(BACKGROUNDS.values()), dtype=torch.float32)
    chosen = named[(uniform[:, 0] * len(named)).long()]
    anything, kind = uniform[:, 1:4], uniform[:, 4:]
    colour = torch.where(kind < 0.75, chosen, anything)
    return torch.where(kind < WHITE_SHARE, torch.ones_like(colour), colour).numpy()


class AutoencoderBatch(NamedTuple):
    """Pictures, and noise for their latents where the phase wants it."""

    image: Image
    noise: Latent | None


class AutoencoderRecipe(Recipe[AutoencoderBatch]):
    """L1, L1 of the 4x-pooled picture (colour and shape first), and L2 (what PSNR measures)."""

    module: Autoencoder

    def __init__(
        self,
        module: Autoencoder,
        pictures: GlyphPictures,
        *,
        phase: Phase = "full",
        latent_noise: float = 0.0,
        held: int = 256,
    ) -> None:
        """Take the parts; ``latent_noise`` is the most noise a decoder must bear, in latent RMS.

        Latents that a diffusion model drew are never quite those an encoder gives.

        Raises:
            ConfigError: noise while the encoder learns, which would only learn to shout.
        """
        if latent_noise and phase == "full":
            raise ConfigError(
                f"latent_noise={latent_noise} in phase full", hint='it is for phase="decoder"'
            )
        self.module = module
        self.phase = phase
        self.latent_noise = latent_noise
        module.encoder.requires_grad_(phase == "full")
        self.pictures = pictures
        self.train_indices = torch.from_numpy(pictures.indices("train"))
        weights = [pictures.records[i].weight for i in self.train_indices.tolist()]
        # The root evens out: rare weights still count for an autoencoder, which has no captions.
        self.chances = chances(torch.tensor(weights, dtype=torch.float64).sqrt())
        unseen = np.random.default_rng(0).permutation(pictures.indices("held_concept"))
        self.held = np.sort(unseen[:held])

    def stream(self, share: Share) -> Iterator[AutoencoderBatch]:
        """Pictures on random backgrounds, half of them mirrored."""
        for span in share.spans():
            generators = [generator_of(share.seed, k) for k in span]
            uniform = uniform_of(generators, 8)
            rows = self.train_indices[drawn_by_weight(self.chances, uniform[:, 0])].numpy()
            image = compose(self.pictures.rgba(rows), backgrounds_of(uniform[:, 1:6]))
            mirror = uniform[:, 6] < 0.5
            image[mirror] = image[mirror].flip(-1)
            noise = None
            if self.latent_noise:
                shape = self.module.config.latent_channels, *self._grid(image)
                share_of_noise = self.latent_noise * uniform[:, 7].view(-1, 1, 1, 1)
                noise = share_of_noise * normal_of(generators, *shape)
            yield AutoencoderBatch(image, noise)

    def prepare(
        self, batch: AutoencoderBatch, device: torch.device, timers: Timers
    ) -> AutoencoderBatch:
        """Bring it to the device, laid out as convolutions like it."""
        image = batch.image.to(device, memory_format=torch.channels_last)
        return AutoencoderBatch(image, None if batch.noise is None else batch.noise.to(device))

    def loss(self, batch: AutoencoderBatch) -> dict[str, Tensor]:
        """Reconstruction only; deterministic given the batch."""
        image = batch.image
        with torch.set_grad_enabled(self.phase == "full" and torch.is_grad_enabled()):
            latent = self.module.encode(image)
        if batch.noise is not None:
            latent = latent + latent.float().square().mean().sqrt() * batch.noise
        restored = self.module.decode(latent).float()
        l1 = F.l1_loss(restored, image)
        pooled = F.l1_loss(F.avg_pool2d(restored, 4), F.avg_pool2d(image, 4))
        l2 = F.mse_loss(restored, image)
        return {"loss": l1 + pooled + l2, "l1": l1.detach(), "l2": l2.detach()}

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """PSNR on concepts never trained on, white background; and 1 / RMS of their latents."""
        assert isinstance(module, Autoencoder)
        values, squares = [], []
        for rows in np.array_split(self.held, max(1, len(self.held) // 32)):
            white = np.ones((len(rows), 3), dtype=np.float32)
            image = compose(self.pictures.rgba(rows), white)
            latent = module.encode(image)
            values.append(psnr(module.decode(latent).clamp(-1, 1), image))
            squares.append(latent.square().mean())
        rms = torch.stack(squares).mean().sqrt()
        return {"psnr": float(torch.cat(values).mean()), "scaling_factor": float(1 / rms)}

    def blocks(self) -> Iterator[nn.Module]:
        """The convolutional blocks; attention at 4 x 4 stays eager, where it is faster."""
        for module in self.module.modules():
            if isinstance(module, ResBlock | Upsample | Downsample):
                yield module

    def _grid(self, image: Image) -> tuple[int, int]:
        factor = self.module.config.spatial_factor
        return image.shape[-2] // factor, image.shape[-1] // factor
