"""Train the linear diffusion transformer on cached latents and live captions.

Source of the loss: reference 4.2 (rectified flow, logit-normal levels, null prompt for one sample
in ten). The text encoder may learn along; it then is part of the trained module.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sanakit.data.glyph.backgrounds import BACKGROUNDS, captioned
from sanakit.data.glyph.pictures import GlyphPictures, Record, compose
from sanakit.data.glyph.split import PROTECTED
from sanakit.flow.grids import NoiseLevel
from sanakit.flow.noise_levels import levels_at
from sanakit.flow.path import flow_matching_loss, interpolate
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.flops import language_model_flops, transformer_flops
from sanakit.models.text_encoder import length_mask
from sanakit.models.transformer import LinearDiT
from sanakit.shapes import Latent, PerSample, TextMask, TokenIds
from sanakit.train.flops import SeenShapes, Shapes
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

ENCODE_BATCH = 32
EVALUATED = 512
SILHOUETTE = "silhouette"


@dataclass(frozen=True, kw_only=True)
class CachedLatents:
    """Scaled latents of every picture, on white and on one other background each."""

    white: npt.NDArray[np.float16]  # N c h w
    other: npt.NDArray[np.float16]  # N c h w
    backgrounds: npt.NDArray[np.int64]  # N; which of BACKGROUNDS `other` is on
    scaling_factor: float


@torch.inference_mode()
def cache_latents(
    autoencoder: Autoencoder, pictures: GlyphPictures, *, seed: int = 0
) -> CachedLatents:
    """Encode every picture twice; latents are divided by their own RMS over the training split."""
    count = len(pictures.records)
    backgrounds = np.random.default_rng(seed).integers(1, len(BACKGROUNDS), count)
    colours = np.array(list(BACKGROUNDS.values()), dtype=np.float32)
    halves = []
    for numbers in (np.zeros(count, dtype=np.int64), backgrounds):
        parts = []
        for rows in np.array_split(np.arange(count), max(1, count // ENCODE_BATCH)):
            image = compose(pictures.rgba(rows), colours[numbers[rows]])
            image = image.contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                latent = autoencoder.encode(image)
            parts.append(latent.float().contiguous().numpy())
        halves.append(np.concatenate(parts))
    train = pictures.indices("train")
    rms = float(np.sqrt(np.mean([np.square(half[train]).mean() for half in halves])))
    white, other = ((half / rms).astype(np.float16) for half in halves)
    return CachedLatents(white=white, other=other, backgrounds=backgrounds, scaling_factor=1 / rms)


@dataclass(frozen=True, kw_only=True)
class DiffusionBatch:
    """Latents ``b c h w``, the token ids of their captions, and where on the path they are seen."""

    x0: Latent
    noise: Latent
    level: NoiseLevel
    ids: TokenIds
    mask: TextMask


class DiffusionRecipe(Recipe[DiffusionBatch]):
    """Velocity regression; captions are drawn anew each time a picture is."""

    def __init__(
        self,
        transformer: LinearDiT,
        llm: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        pictures: GlyphPictures,
        latents: CachedLatents,
        *,
        tune_text: bool = True,
        flow_shift: float = 1.0,
        null_share: float = 0.1,
        other_share: float = 0.25,
        everyday_weight: float = 4.0,
    ) -> None:
        self.module = nn.ModuleDict({"transformer": transformer, "text_encoder": llm})
        self.tokenizer = tokenizer
        self.pictures = pictures
        self.latents = latents
        self.tune_text = tune_text
        llm.requires_grad_(tune_text)
        self.flow_shift = flow_shift
        self.null_share = null_share
        self.other_share = other_share
        self.train_indices = torch.from_numpy(pictures.indices("train"))
        weights = [
            record.weight * (everyday_weight if is_everyday(record) else 1.0)
            for record in (pictures.records[i] for i in self.train_indices.tolist())
        ]
        self.chances = chances(torch.tensor(weights, dtype=torch.float64))
        self.held = pictures.indices("held_style")[:EVALUATED]
        self._seen = SeenShapes(self._operations)

    def stream(self, share: Share) -> Iterator[DiffusionBatch]:
        """Pictures by weight, one caption each, some on another background and saying so."""
        for span in share.spans():
            generators = [generator_of(share.seed, k) for k in span]
            uniform = uniform_of(generators, 4)
            picked = drawn_by_weight(self.chances, uniform[:, 0])
            rows = self.train_indices[picked].tolist()
            captions, latents = [], []
            for row, (which, background, null) in zip(rows, uniform[:, 1:].tolist(), strict=True):
                on_other = background < self.other_share
                empty = null < self.null_share
                captions.append("" if empty else self._caption(row, which, on_other))
                latents.append((self.latents.other if on_other else self.latents.white)[row])
            u = torch.sigmoid(normal_of(generators))
            noise = normal_of(generators, *latents[0].shape)
            yield self._batch(captions, np.stack(latents), noise, levels_at(u, self.flow_shift))

    def prepare(
        self, batch: DiffusionBatch, device: torch.device, timers: Timers
    ) -> DiffusionBatch:
        """Bring it to the device; the text encoder is part of the module."""
        return DiffusionBatch(
            x0=batch.x0.to(device),
            noise=batch.noise.to(device),
            level=NoiseLevel(*(part.to(device) for part in batch.level)),
            ids=batch.ids.to(device),
            mask=batch.mask.to(device),
        )

    def loss(self, batch: DiffusionBatch) -> dict[str, Tensor]:
        """Mean squared velocity error; also by thirds of the path."""
        self._seen.add(len(batch.x0), batch.x0.shape[-2:], batch.ids.shape[1:])
        error = self._errors(self.module, batch)
        return {"loss": error.mean(), **_by_thirds(error.detach(), batch.level.sigma)}

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """The same loss on held-out concept-style pairs, with fixed noise and even levels."""
        generator = torch.Generator().manual_seed(0)
        device = next(module.parameters()).device
        errors = []
        for rows in np.array_split(self.held, max(1, len(self.held) // 64)):
            captions = [self._caption(row, 0.0, on_other=False) for row in rows.tolist()]
            sigma = (torch.arange(len(rows)) + 0.5) / len(rows)
            level = NoiseLevel(sigma, (1000 * sigma).floor())
            latents = self.latents.white[rows]
            noise = torch.randn(latents.shape, generator=generator)
            batch = self._batch(captions, latents, noise, level)
            errors.append(self._errors(module, self.prepare(batch, device, Timers(device))))
        return {"loss": float(torch.cat(errors).mean())}

    def blocks(self) -> Iterator[nn.Module]:
        """The transformer's blocks."""
        yield from self.module.get_submodule("transformer.transformer_blocks").children()

    def checkpoint_gradients(self) -> None:
        """In the transformer's blocks."""
        self._transformer.gradient_checkpointing = True

    def flops(self) -> float:
        """Of the transformer and the text encoder, at the shapes that :meth:`loss` has seen."""
        return self._seen.mean()

    @property
    def _transformer(self) -> LinearDiT:
        found = self.module.get_submodule("transformer")
        assert isinstance(found, LinearDiT)
        return found

    def _operations(self, shapes: Shapes) -> float:
        (height, width), (tokens,) = shapes
        text = self.module.get_submodule("text_encoder").config
        ours = transformer_flops(self._transformer.config, (height, width), tokens)
        return float(ours + language_model_flops(text, tokens))

    def _errors(self, module: nn.Module, batch: DiffusionBatch) -> PerSample:
        with torch.set_grad_enabled(self.tune_text and torch.is_grad_enabled()):
            states = module.get_submodule("text_encoder")(
                input_ids=batch.ids, attention_mask=batch.mask, use_cache=False
            ).last_hidden_state
        x = interpolate(batch.x0, batch.noise, batch.level.sigma)
        transformer = module.get_submodule("transformer")
        predicted = transformer(x, batch.level.timestep, states, batch.mask)
        return flow_matching_loss(predicted, batch.x0, batch.noise)

    def _caption(self, row: int, which: float, on_other: bool) -> str:
        captions = self.pictures.records[row].captions
        caption = captions[int(which * len(captions))]
        if not on_other:
            return caption
        names = list(BACKGROUNDS)
        return captioned(caption, names[self.latents.backgrounds[row]])

    def _batch(
        self,
        captions: Sequence[str],
        latents: npt.NDArray[np.float16],
        noise: Latent,
        level: NoiseLevel,
    ) -> DiffusionBatch:
        sequences = self.tokenizer([text.lower() for text in captions])["input_ids"]
        lengths = [len(sequence) for sequence in sequences]
        ids = torch.zeros(len(sequences), max(lengths), dtype=torch.long)
        for row, sequence in zip(ids, sequences, strict=True):
            row[: len(sequence)] = torch.tensor(sequence)
        x0 = torch.from_numpy(latents.astype(np.float32))
        return DiffusionBatch(x0=x0, noise=noise, level=level, ids=ids, mask=length_mask(lengths))


def is_everyday(record: Record) -> bool:
    """Whether a picture shows what people ask for first; silhouettes are many as it is."""
    return record.name in PROTECTED and record.style != SILHOUETTE


def _by_thirds(error: Tensor, sigma: Tensor) -> dict[str, Tensor]:
    """Mean error near the data, in the middle and near the noise; the mean where no sample fell."""
    thirds = (3 * sigma).long().clamp(0, 2)
    means = {}
    for index, name in enumerate(("low", "middle", "high")):
        inside = error[thirds == index]
        means[f"loss_{name}"] = inside.mean() if len(inside) else error.mean()
    return means
