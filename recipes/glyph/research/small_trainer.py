"""Train the linear diffusion transformer on latents of the glyph mixture.

Source of the loss: NVlabs/Sana train_scripts/train.py (rectified flow, logit-normal levels, null
prompt for one sample in ten). The text encoder may learn along; it then is part of the trained
module.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recipes.glyph.data.captions import freely
from recipes.glyph.data.mixture import Sample
from recipes.glyph.research.latent_bank import LatentBank
from recipes.glyph.train.language_model import recompute
from sanakit.flow.grids import NoiseLevel, levels_at
from sanakit.flow.path import flow_matching_loss, interpolate
from sanakit.models.flops import language_model_flops, transformer_flops
from sanakit.models.text_encoder import length_mask
from sanakit.models.transformer import LinearDiT
from sanakit.shapes import Latent, PerSample, Text, TextMask, TokenIds
from sanakit.train.mfu import SeenShapes, Shapes
from sanakit.train.recipe import Recipe, Timers
from sanakit.train.sample_schedule import (
    SampleSchedule,
    generator_of,
    normal_of,
    uniform_of,
)

WIDTHS = 16
"""What is kept of texts is as wide as a multiple of it, so that few shapes are compiled for."""
MOST_TOKENS = 32
"""Of a caption, with its first: what is longer, one in a hundred of ours, is cut off."""


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
        bank: LatentBank,
        *,
        instruction: str | None = None,
        tune_text: bool = True,
        flow_shift: float = 1.0,
        null_share: float = 0.1,
    ) -> None:
        """Take the parts; captions are read behind ``instruction``, the null prompt never is."""
        self.instruction = instruction or ""
        prefix = tokenizer([self.instruction])["input_ids"][0]
        # Its last token joins the caption's first word, as where prompts are encoded.
        self._kept_from = len(prefix) - 1 if self.instruction else 1
        self.module = nn.ModuleDict({"transformer": transformer, "text_encoder": llm})
        self.tokenizer = tokenizer
        self.bank = bank
        self.tune_text = tune_text
        llm.requires_grad_(tune_text)
        self.flow_shift = flow_shift
        self.null_share = null_share
        self._seen = SeenShapes(self._operations)

    def stream(self, schedule: SampleSchedule) -> Iterator[DiffusionBatch]:
        """Samples of the bank, each in new words or, rarely, none."""
        bank = self.bank
        for span in schedule.spans():
            generators = [generator_of(schedule.seed, k) for k in span]
            uniform = uniform_of(generators, 2)
            rows = (uniform[:, 0] * len(bank.samples)).long().tolist()
            captions = [
                ""
                if null < self.null_share
                else self.caption(bank.samples[row], np.random.default_rng((schedule.seed, k)))
                for k, row, null in zip(span, rows, uniform[:, 1].tolist(), strict=True)
            ]
            latents = bank.latents[rows]
            level = levels_at(self.squash(normal_of(generators)), self.flow_shift)
            noise = normal_of(generators, *latents.shape[1:])
            yield self._batch(captions, latents, noise, level)

    def caption(self, sample: Sample, rng: np.random.Generator) -> str:
        """What a sample is shown with: other words of it each time."""
        return freely(self.bank.mixture.words(sample, rng), rng)

    def squash(self, normal: PerSample) -> PerSample:
        """Bring normal numbers to noise levels within 0 and 1, before the flow shift."""
        return torch.sigmoid(normal)

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
        bank = self.bank
        for rows in np.array_split(np.arange(len(bank.held)), max(1, len(bank.held) // 64)):
            captions = [bank.held[row].caption for row in rows.tolist()]
            sigma = (torch.arange(len(rows)) + 0.5) / len(rows)
            level = NoiseLevel(sigma, (1000 * sigma).floor())
            latents = bank.held_latents[rows]
            noise = torch.randn(latents.shape, generator=generator)
            batch = self._batch(captions, latents, noise, level)
            errors.append(self._errors(module, self.prepare(batch, device, Timers(device))))
        return {"loss": float(torch.cat(errors).mean())}

    def blocks(self) -> Iterator[nn.Module]:
        """The transformer's, and the text encoder's layers: as dear if they learn along."""
        yield from self.module.get_submodule("transformer.transformer_blocks").children()
        yield from self.module.get_submodule("text_encoder.layers").children()

    def checkpoint_gradients(self) -> None:
        """In the transformer's blocks, and in the text encoder's layers."""
        self._transformer.gradient_checkpointing = True
        recompute(self.module.get_submodule("text_encoder.layers").children())

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
        kept = 1 + tokens - self._kept_from
        ours = transformer_flops(self._transformer.config, (height, width), kept)
        return float(ours + language_model_flops(text, tokens))

    def _errors(self, module: nn.Module, batch: DiffusionBatch) -> PerSample:
        with torch.set_grad_enabled(self.tune_text and torch.is_grad_enabled()):
            text = self._kept(self.states(module.get_submodule("text_encoder"), batch))
        x = interpolate(batch.x0, batch.noise, batch.level.sigma)
        transformer = module.get_submodule("transformer")
        mask = self._kept(batch.mask)
        predicted = transformer(x, text, batch.level.timestep, encoder_attention_mask=mask).sample
        return flow_matching_loss(predicted, batch.x0, batch.noise)

    def states(self, llm: nn.Module, batch: DiffusionBatch) -> Text:
        """Of all tokens, ``b l d``: what the transformer is given of a text."""
        found: Text = llm(
            input_ids=batch.ids, attention_mask=batch.mask, use_cache=False
        ).last_hidden_state
        return found

    def _kept(self, along: Text | TextMask) -> Text | TextMask:
        """The first token and all from the instruction's last place on, as `SanaPipeline`."""
        return torch.cat([along[:, :1], along[:, self._kept_from :]], dim=1)

    def _batch(
        self,
        captions: Sequence[str],
        latents: npt.NDArray[np.float16],
        noise: Latent,
        level: NoiseLevel,
    ) -> DiffusionBatch:
        texts = [self.instruction + text.lower().strip() if text else "" for text in captions]
        sequences = self.tokenizer(texts)["input_ids"]
        sequences = [ids[: self._kept_from + MOST_TOKENS - 1] for ids in sequences]
        lengths = [len(sequence) for sequence in sequences]
        cut_away = self._kept_from - 1
        width = cut_away + max(1, -(-(max(lengths) - cut_away) // WIDTHS)) * WIDTHS
        ids = torch.zeros(len(sequences), width, dtype=torch.long)
        for row, sequence in zip(ids, sequences, strict=True):
            row[: len(sequence)] = torch.tensor(sequence)
        x0 = torch.from_numpy(latents.astype(np.float32))
        return DiffusionBatch(
            x0=x0, noise=noise, level=level, ids=ids, mask=length_mask(lengths, width)
        )


def _by_thirds(error: Tensor, sigma: Tensor) -> dict[str, Tensor]:
    """Mean error near the data, in the middle and near the noise; the mean where no sample fell."""
    thirds = (3 * sigma).long().clamp(0, 2)
    means = {}
    for index, name in enumerate(("low", "middle", "high")):
        inside = error[thirds == index]
        means[f"loss_{name}"] = inside.mean() if len(inside) else error.mean()
    return means
