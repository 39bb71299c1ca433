"""The diffusion recipe with what the experiments on words and noise levels change in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recipes.glyph.data.backgrounds import captioned
from recipes.glyph.data.mixture import Mixture, Sample
from recipes.glyph.research.latent_bank import LatentBank
from recipes.glyph.research.small_trainer import DiffusionBatch, DiffusionRecipe
from sanakit.flow.grids import NoiseLevel
from sanakit.models.transformer import LinearDiT
from sanakit.shapes import PerSample, Text

Words = Literal["anew", "plain"]
Levels = Literal["logit-normal", "uniform"]
Layer = Literal["last", "middle", "embeddings"]
LEVELS_EACH = 3
"""Noise levels at which each held sample is seen: one in each third of the path."""
AT_A_TIME = 64


class TextRecipe(DiffusionRecipe):
    """Captions drawn anew or not, read from a layer of choice, at levels of choice.

    With the defaults it draws and computes what `DiffusionRecipe` does; everything random is drawn
    from the same numbers whatever the choices are.
    """

    def __init__(
        self,
        transformer: LinearDiT,
        llm: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        bank: LatentBank,
        *,
        tune_text: bool = False,
        flow_shift: float = 1.0,
        words: Words = "anew",
        levels: Levels = "logit-normal",
        layer: Layer = "last",
        instruction: str = "",
        known: dict[bytes, Text] | None = None,
    ) -> None:
        """``known`` keeps what a frozen text encoder said, for runs that are asked the same."""
        super().__init__(
            transformer,
            llm,
            tokenizer,
            bank,
            instruction=instruction,
            tune_text=tune_text,
            flow_shift=flow_shift,
        )
        self.words, self.levels, self.layer = words, levels, layer
        self.known = {} if known is None else known

    def caption(self, sample: Sample, rng: np.random.Generator) -> str:
        """What a sample is shown with in training."""
        if self.words == "anew":
            return super().caption(sample, rng)
        return plain_words(self.bank.mixture, sample)

    def squash(self, normal: PerSample) -> PerSample:
        """The same numbers, spread as the choice of levels asks."""
        return (
            super().squash(normal) if self.levels == "logit-normal" else torch.special.ndtr(normal)
        )

    def states(self, llm: nn.Module, batch: DiffusionBatch) -> Text:
        """Of all tokens, ``b l d``: each of unit size, whatever the layer."""
        if self.tune_text:
            return self._read(llm, batch)
        key = f"{self.layer} {self.instruction}".encode() + batch.ids.numpy().tobytes()
        if key not in self.known:
            self.known[key] = self._read(llm, batch)
        return self.known[key]

    def _read(self, llm: nn.Module, batch: DiffusionBatch) -> Text:
        if self.layer == "last":
            return super().states(llm, batch)
        found = llm(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            use_cache=False,
            output_hidden_states=True,
        )
        # The last one went through a norm; the others get the same without its weights.
        depth = len(found.hidden_states) - 1
        states = found.hidden_states[depth // 2 if self.layer == "middle" else 0].float()
        return states * states.square().mean(dim=-1, keepdim=True).add(1e-6).rsqrt()

    def held_errors(
        self, caption: Callable[[Sample], str] = lambda sample: sample.caption
    ) -> npt.NDArray[np.float64]:
        """Squared velocity error ``n LEVELS_EACH`` of each held sample, levels rising.

        Levels and noise of a sample are the same for every recipe; over all samples levels are
        even. Call within `Trained.shown`.
        """
        bank, generator = self.bank, torch.Generator().manual_seed(0)
        count = len(bank.held)
        offsets = torch.randperm(count, generator=generator).add(0.5).div(count)
        found = np.empty((count, LEVELS_EACH))
        for rows in np.array_split(np.arange(count), max(1, count // AT_A_TIME)):
            captions = [caption(bank.held[row]) for row in rows.tolist()]
            latents = bank.held_latents[rows]
            for number in range(LEVELS_EACH):
                sigma = (number + offsets[torch.from_numpy(rows)]) / LEVELS_EACH
                level = NoiseLevel(sigma, (1000 * sigma).floor())
                noise = torch.randn(latents.shape, generator=generator)
                batch = self._batch(captions, latents, noise, level)
                found[rows, number] = self._errors(self.module, batch).double().numpy()
        return found


def plain_words(mixture: Mixture, sample: Sample) -> str:
    """Always the same words of a sample: the plainest of its picture, or those it was drawn with.

    A background that is not white is said, as it always is.
    """
    if sample.number is None:
        return sample.caption
    text = mixture.pictures.records[sample.number].captions[0]
    return text if sample.background == "white" else captioned(text, sample.background)
