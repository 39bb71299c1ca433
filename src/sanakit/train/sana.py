"""Train a SANA transformer, or a LoRA of one, on one's own pictures.

Source of the loss: reference 4.2. Rectified flow, logit-normal levels, whole timesteps; the null
prompt is the text encoder's own from the first step, with its own mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sanakit.data.loader.batches import Batch as Read
from sanakit.errors import NumericsError
from sanakit.flow.grids import NoiseLevel
from sanakit.flow.guidance import Guidance
from sanakit.flow.noise_levels import levels_at
from sanakit.flow.path import flow_matching_loss, interpolate
from sanakit.flow.solvers import integrate
from sanakit.models.transformer import LinearDiT
from sanakit.pipeline.components import Habits
from sanakit.pipeline.decoding import decode_pixels
from sanakit.pipeline.generate import seeded_noise
from sanakit.pipeline.images import Pixels
from sanakit.shapes import Latent, PerSample, Text, TextMask
from sanakit.train.flops import SeenShapes, Shapes, counted
from sanakit.train.frozen import Frozen
from sanakit.train.loss_bins import LossBins
from sanakit.train.own_pictures import OwnPictures
from sanakit.train.recipe import Recipe
from sanakit.train.sana_settings import SanaSettings
from sanakit.train.shares import Share, generator_of, normal_of, uniform_of
from sanakit.train.timers import Timers

EVALUATED = 32
EVALUATION_BATCH = 8
STEPS = 20
"""Of the solver, for the validation grid."""
SEEDS = (0, 1)


@dataclass(frozen=True, kw_only=True)
class SanaBatch:
    """Pictures and captions of one size, and where on the path they are seen.

    As drawn it has ``pixels``, uint8 ``b H W 3``, and ``captions``, or what was computed of them in
    advance; as prepared it has scaled latents ``x0``, states ``text`` and their ``mask``.
    """

    noise: Latent
    level: NoiseLevel
    ids: Sequence[str] = ()
    captions: Sequence[str] = ()
    pixels: Tensor | None = None
    x0: Latent | None = None
    text: Text | None = None
    mask: TextMask | None = None


class SanaRecipe(Recipe[SanaBatch]):
    """Velocity regression on latents; ``module`` is the transformer, whose weights or LoRA learn.

    ``held`` are pictures to measure on; without them some that are trained on are taken, and the
    measure is called ``seen_loss``. ``prompts`` are what the validation grid is drawn from.
    """

    module: LinearDiT

    def __init__(
        self,
        module: LinearDiT,
        frozen: Frozen,
        habits: Habits,
        pictures: OwnPictures,
        settings: SanaSettings,
        *,
        held: OwnPictures | None = None,
        prompts: Sequence[str] = (),
    ) -> None:
        self.module, self.frozen, self.habits = module, frozen, habits
        self.pictures, self.held, self.settings = pictures, held, settings
        self.prompts = tuple(prompts)
        shift = settings.flow_shift
        self.flow_shift = habits.scheduler.flow_shift if shift is None else shift
        self.bins = LossBins()
        self._measured: list[SanaBatch] = []
        self._seen = SeenShapes(self._operations)

    def stream(self, share: Share) -> Iterator[SanaBatch]:
        """A rank's part of each batch of the loader, in parts, with noise by sample number."""
        spans = share.spans()
        for batch in self.pictures.batches(share):
            for part in range(share.parts):
                rows = slice(part * share.size, (part + 1) * share.size)
                generators = [generator_of(share.seed, k) for k in next(spans)]
                level = levels_at(self._positions(generators), self.flow_shift)
                noise = normal_of(generators, *self._latent_shape(batch))
                yield _drawn(batch, rows, noise, level)

    def prepare(self, batch: SanaBatch, device: torch.device, timers: Timers) -> SanaBatch:
        """Bring it to the device, with latents and text states, computed or read."""
        x0, text, mask = batch.x0, batch.text, batch.mask
        if x0 is None:
            assert batch.pixels is not None
            with timers("autoencoder"):
                x0 = self.frozen.latents(batch.ids, batch.pixels, device)
        if text is None or mask is None:
            with timers("text"):
                text, mask = self.frozen.texts(batch.captions, device)
        return SanaBatch(
            noise=batch.noise.to(device),
            level=NoiseLevel(*(part.to(device) for part in batch.level)),
            x0=x0.to(device).float(),
            text=text.to(device).float(),
            mask=mask.to(device),
        )

    def loss(self, batch: SanaBatch) -> dict[str, Tensor]:
        """Mean squared velocity error; by noise level too, see :meth:`log_extras`."""
        assert batch.x0 is not None
        assert batch.text is not None
        self._seen.add(len(batch.x0), batch.x0.shape[1:], batch.text.shape[1:])
        errors = self._errors(self.module, batch)
        self.bins.add(errors.detach(), batch.level.sigma)
        return {"loss": errors.mean()}

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """The same loss on fixed pictures with fixed noise, at levels evenly over the path."""
        device = next(module.parameters()).device
        if not self._measured:
            self._measured = [self.prepare(b, device, Timers(device)) for b in self._fixed()]
        errors = torch.cat([self._errors(module, batch) for batch in self._measured])
        return {"loss" if self.held else "seen_loss": float(errors.mean())}

    def blocks(self) -> Iterator[nn.Module]:
        """The transformer's blocks."""
        yield from self.module.transformer_blocks.children()

    def checkpoint_gradients(self) -> None:
        """Recompute the transformer's blocks."""
        self.module.gradient_checkpointing = True

    def log_extras(self) -> dict[str, float]:
        """Mean losses of ten bins of sigma since the last line, over all ranks."""
        if dist.is_initialized():
            self.bins.all_reduce()
        means = {name: round(value, 4) for name, value in self.bins.means().items()}
        self.bins.reset()
        return means

    def validation_grid(self, module: nn.Module) -> npt.NDArray[Any] | None:
        """A row for each prompt, a column for each seed; None without prompts, or after NaN."""
        if not self.prompts:
            return None
        rows = [self._drawn_of(module, prompt) for prompt in self.prompts]
        whole = [np.concatenate(row, axis=1) for row in rows if row is not None]
        return np.concatenate(whole, axis=0) if len(whole) == len(rows) else None

    def flops(self) -> float:
        """Of the transformer without adapters, at the shapes that :meth:`loss` has seen."""
        return self._seen.mean()

    def _operations(self, shapes: Shapes) -> float:
        def forward() -> Tensor:
            x, text = (torch.zeros(1, *shape) for shape in shapes)
            mask = torch.ones(text.shape[:2], dtype=torch.bool)
            velocity: Tensor = LinearDiT(self.module.config)(x, torch.zeros(1), text, mask)
            return velocity

        return counted(forward)

    def _drawn_of(self, module: nn.Module, prompt: str) -> Pixels | None:
        """A picture ``H W 3`` uint8 for each seed; None if a number is not finite."""
        device = next(module.parameters()).device
        autoencoder = self.frozen.autoencoder.to(device)
        side = self.module.config.sample_size
        noise = [seeded_noise(seed, self.module.config.in_channels, side, side) for seed in SEEDS]
        guidance = Guidance(guidance_scale=self.habits.guidance_scale)
        text, mask = self.frozen.texts([prompt, ""], device)
        text, mask = (each.repeat_interleave(len(SEEDS), dim=0) for each in (text, mask))

        def velocity(x: Latent, level: NoiseLevel) -> Latent:
            timestep = (level.timestep * self.module.config.timestep_scale).to(device)
            both = module(x.repeat(2, 1, 1, 1), timestep.expand(len(text)), text, mask)
            cond, uncond = both[:, : x.shape[1]].float().chunk(2)
            return guidance.combine(level, cond, uncond=uncond, perturbed=None)

        scheduler = self.habits.scheduler
        latent = integrate(
            scheduler.solver.step, velocity, torch.cat(noise).to(device), scheduler.grid(STEPS)
        )
        try:
            with torch.autocast(device.type, enabled=False):
                return decode_pixels(autoencoder, latent)
        except NumericsError:
            return None  # the run itself counts steps that are not finite

    def _errors(self, module: nn.Module, batch: SanaBatch) -> PerSample:
        assert batch.x0 is not None
        x = interpolate(batch.x0, batch.noise, batch.level.sigma)
        timestep = batch.level.timestep * self.module.config.timestep_scale
        predicted = module(x, timestep, batch.text, batch.mask)[:, : x.shape[1]]
        return flow_matching_loss(predicted, batch.x0, batch.noise)

    def _positions(self, generators: list[torch.Generator]) -> Tensor:
        """Places in [0, 1] of the path before its shift, one for each sample."""
        settings = self.settings
        if settings.levels == "uniform":
            return uniform_of(generators)
        return torch.sigmoid(settings.level_mean + settings.level_std * normal_of(generators))

    def _latent_shape(self, batch: Read) -> tuple[int, int, int]:
        factor = self.frozen.autoencoder.config.spatial_factor
        return self.module.config.in_channels, batch.height // factor, batch.width // factor

    def _fixed(self) -> Iterator[SanaBatch]:
        """The first pictures in an order of their own; never the null prompt."""
        source = replace(self.held or self.pictures, captions=self.settings.choice(null=False))
        generator = torch.Generator().manual_seed(0)
        share = Share(seed=1, batch_size=EVALUATION_BATCH)
        count = EVALUATED // EVALUATION_BATCH
        levels = (torch.arange(EVALUATED) + 0.5) / EVALUATED
        for number, batch in enumerate(islice(source.batches(share), count)):
            sigma = levels[number::count]
            shape = (EVALUATION_BATCH, *self._latent_shape(batch))
            noise = torch.randn(shape, generator=generator)
            level = NoiseLevel(sigma, (1000 * sigma).floor())
            drawn = _drawn(batch, slice(None), noise, level)
            yield replace(drawn, ids=[f"{source.shards}: {id}" for id in drawn.ids])


def _drawn(batch: Read, rows: slice, noise: Latent, level: NoiseLevel) -> SanaBatch:
    """Some samples of a batch that was read."""

    def some(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[rows]

    return SanaBatch(
        noise=noise,
        level=level,
        ids=batch.ids[rows],
        captions=batch.captions[rows],
        pixels=some(batch.pixels),
        x0=some(batch.latents),
        text=some(batch.text),
        mask=some(batch.text_mask),
    )
