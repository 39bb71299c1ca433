"""Train a DC-AE on pictures with alpha: first phase, all weights, at low resolution."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sanakit.data.glyph.backgrounds import BACKGROUNDS
from sanakit.data.glyph.pictures import GlyphPictures, compose
from sanakit.errors import ConfigError
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.autoencoder_blocks import ResBlock
from sanakit.nn.resample import Downsample, Upsample
from sanakit.shapes import Image

Phase = Literal["full", "decoder"]
"""`decoder` goes on with the encoder frozen, so that latents made before stay valid."""
WHITE_SHARE = 0.5


def psnr(image: Image, reference: Image) -> Tensor:
    """Peak signal-to-noise ratio of each picture, dB; both in [-1, 1], so the peak is 2."""
    error = (image - reference).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(4 / error.clamp_min(1e-10))


def draw_backgrounds(size: int, generator: torch.Generator) -> np.ndarray:
    """Half white, a quarter named colours, a quarter any colour; ``size 3`` in [0, 1]."""
    named = torch.tensor(list(BACKGROUNDS.values()), dtype=torch.float32)
    chosen = named[torch.randint(len(named), (size,), generator=generator)]
    anything = torch.rand(size, 3, generator=generator)
    kind = torch.rand(size, 1, generator=generator)
    colour = torch.where(kind < 0.75, chosen, anything)
    return torch.where(kind < WHITE_SHARE, torch.ones_like(colour), colour).numpy()


class AutoencoderRecipe:
    """L1, L1 of the 4x-pooled picture (colour and shape first), and L2 (what PSNR measures)."""

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
        self.weights = torch.tensor(weights, dtype=torch.float64).sqrt()
        unseen = np.random.default_rng(0).permutation(pictures.indices("held_concept"))
        self.held = np.sort(unseen[:held])

    def draw(self, size: int, generator: torch.Generator) -> Image:
        """Pictures on random backgrounds, half of them mirrored."""
        picked = torch.multinomial(self.weights, size, replacement=True, generator=generator)
        rows = self.train_indices[picked].numpy()
        image = compose(self.pictures.rgba(rows), draw_backgrounds(size, generator))
        mirror = torch.rand(size, generator=generator) < 0.5
        image[mirror] = image[mirror].flip(-1)
        return image.contiguous(memory_format=torch.channels_last)

    def loss(self, batch: Image, generator: torch.Generator) -> dict[str, Tensor]:
        """Reconstruction only; deterministic given the batch and the generator."""
        with torch.set_grad_enabled(self.phase == "full"):
            latent = self.module.encode(batch)
        if self.latent_noise:
            share = torch.rand(len(latent), 1, 1, 1, generator=generator)
            noise = torch.randn(latent.shape, generator=generator)
            rms = latent.float().square().mean().sqrt()
            latent = latent + self.latent_noise * rms * share * noise
        restored = self.module.decode(latent).float()
        l1 = F.l1_loss(restored, batch)
        pooled = F.l1_loss(F.avg_pool2d(restored, 4), F.avg_pool2d(batch, 4))
        l2 = F.mse_loss(restored, batch)
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
