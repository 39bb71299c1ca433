"""The diffusion recipe with what the experiments on words and noise levels change in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sanakit.data.glyph.backgrounds import captioned
from sanakit.data.glyph.mixture import Mixture, Sample
from sanakit.flow.grids import NoiseLevel
from sanakit.flow.noise_levels import levels_at
from sanakit.flow.path import flow_matching_loss, interpolate
from sanakit.models.text_encoder import length_mask
from sanakit.models.transformer import LinearDiT
from sanakit.shapes import PerSample, Text, TextMask
from sanakit.train.diffusion import DiffusionBatch, DiffusionRecipe
from sanakit.train.latent_bank import LatentBank
from sanakit.train.shares import Share, generator_of, normal_of, uniform_of
from sanakit.train.timers import Timers

Words = Literal["anew", "plain"]
Levels = Literal["logit-normal", "uniform"]
Layer = Literal["last", "middle", "embeddings"]
LEVELS_EACH = 3
"""Noise levels at which each held sample is seen: one in each third of the path."""
AT_A_TIME = 64


@dataclass(frozen=True, kw_only=True)
class TextBatch(DiffusionBatch):
    """With the places whose states the transformer reads."""

    kept: Tensor
    kept_mask: TextMask


class TextRecipe(DiffusionRecipe):
    """Captions behind an instruction or not, from a layer of choice, at levels of choice.

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
    ) -> None:
        super().__init__(
            transformer, llm, tokenizer, bank, tune_text=tune_text, flow_shift=flow_shift
        )
        self.words, self.levels, self.layer = words, levels, layer
        self.instruction = instruction
        # As the prompt encoder has it: the last place of the instruction is the prompt's.
        self.cut_away = len(tokenizer([instruction])["input_ids"][0]) - 1 if instruction else 1

    def stream(self, share: Share) -> Iterator[DiffusionBatch]:
        bank = self.bank
        for span in share.spans():
            generators = [generator_of(share.seed, k) for k in span]
            uniform = uniform_of(generators, 2)
            rows = (uniform[:, 0] * len(bank.samples)).long().tolist()
            captions = [
                ""
                if null < self.null_share
                else self.caption(bank.samples[row], np.random.default_rng((share.seed, k)))
                for k, row, null in zip(span, rows, uniform[:, 1].tolist(), strict=True)
            ]
            latents = bank.latents[rows]
            normal = normal_of(generators)
            squash = torch.sigmoid if self.levels == "logit-normal" else torch.special.ndtr
            noise = normal_of(generators, *latents.shape[1:])
            yield self._batch(captions, latents, noise, levels_at(squash(normal), self.flow_shift))

    def caption(self, sample: Sample, rng: np.random.Generator) -> str:
        """What a sample is shown with in training."""
        if self.words == "anew":
            return self.bank.mixture.words(sample, rng)
        return plain_words(self.bank.mixture, sample)

    def prepare(
        self, batch: DiffusionBatch, device: torch.device, timers: Timers
    ) -> DiffusionBatch:
        return batch

    def _batch(
        self,
        captions: Sequence[str],
        latents: npt.NDArray[np.float16],
        noise: Tensor,
        level: NoiseLevel,
    ) -> TextBatch:
        # The null prompt never stands behind the instruction.
        whole = [self.instruction + text.strip() if text else "" for text in captions]
        plain = super()._batch(whole, latents, noise, level)
        lengths = plain.mask.sum(dim=1).tolist()
        rows = [
            [0, *range(self.cut_away if text else 1, length)]
            for text, length in zip(captions, lengths, strict=True)
        ]
        kept = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for row, places in zip(kept, rows, strict=True):
            row[: len(places)] = torch.tensor(places)
        values = {field.name: getattr(plain, field.name) for field in fields(plain)}
        return TextBatch(**values, kept=kept, kept_mask=length_mask([len(row) for row in rows]))

    def states(self, llm: nn.Module, batch: TextBatch) -> Text:
        """What the transformer reads, ``b l d``: each token of unit size, whatever the layer."""
        found = llm(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            use_cache=False,
            output_hidden_states=self.layer != "last",
        )
        if self.layer == "last":
            states = found.last_hidden_state
        else:
            # The last one went through a norm; the others get the same without its weights.
            depth = len(found.hidden_states) - 1
            states = found.hidden_states[depth // 2 if self.layer == "middle" else 0].float()
            states = states * states.square().mean(dim=-1, keepdim=True).add(1e-6).rsqrt()
        return states.gather(1, batch.kept.unsqueeze(-1).expand(-1, -1, states.shape[-1]))

    def _errors(self, module: nn.Module, batch: DiffusionBatch) -> PerSample:
        assert isinstance(batch, TextBatch)
        with torch.set_grad_enabled(self.tune_text and torch.is_grad_enabled()):
            states = self.states(module.get_submodule("text_encoder"), batch)
        x = interpolate(batch.x0, batch.noise, batch.level.sigma)
        transformer = module.get_submodule("transformer")
        predicted = transformer(x, batch.level.timestep, states, batch.kept_mask)
        return flow_matching_loss(predicted, batch.x0, batch.noise)

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
