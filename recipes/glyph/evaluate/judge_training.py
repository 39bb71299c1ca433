"""Teach a judge: looks from memory, a caption drawn anew each time, symmetric InfoNCE."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from recipes.glyph.evaluate.judge import Judge, contrastive_loss
from recipes.glyph.evaluate.judge_samples import LooksArray, Shown
from recipes.glyph.evaluate.retrieval import Trial, hits, ranks_of
from recipes.glyph.evaluate.visual_features import Looks
from sanakit.errors import ConfigError
from sanakit.shapes import TextMask, TokenIds
from sanakit.train.config import LoopConfig
from sanakit.train.recipe import Recipe, Timers
from sanakit.train.sample_schedule import SampleSchedule, generator_of, uniform_of

Batch = tuple[Looks, TokenIds, TextMask, Tensor]
"""Looks, captions, and which captions are true of which pictures."""
MOST_TOKENS = 48
JUDGE_LOOP = LoopConfig(
    batch_size=256,
    total_images=400_000,
    peak_lr=2e-3,
    schedule="cosine",
    warmup_images=25_600,
    weight_decay=0.05,
    betas=(0.9, 0.98),
    compute_dtype="float32",
    log_every=50,
    evaluate_every=300,
    device="cpu",
)


@dataclass(frozen=True, kw_only=True)
class HeldTrials:
    """Held-out pictures to measure on while training: their looks and their trials."""

    looks: LooksArray
    trials: Sequence[Trial]


class JudgeRecipe(Recipe[Batch]):
    """Contrastive learning on cached looks; how the loop trains a judge.

    The loss of a batch is no sum over its samples: all others are what each is told from. So a
    batch is computed whole, on one rank and in one part.
    """

    module: Judge

    def __init__(
        self,
        module: Judge,
        tokenizer: PreTrainedTokenizerBase,
        shown: Sequence[Shown],
        looks: LooksArray,
        held: dict[str, HeldTrials],
    ) -> None:
        """Take what to learn from, and what is held out, by split."""
        self.module, self.tokenizer = module, tokenizer
        self.shown, self.looks, self.held = shown, looks, held
        self.known = [frozenset(one.texts) for one in shown]

    def stream(self, schedule: SampleSchedule) -> Iterator[Batch]:
        """Any pictures, each as likely, with one of their captions."""
        if schedule.ranks > 1 or schedule.parts > 1:
            raise ConfigError(
                "a judge compares all pictures of a batch with each other",
                hint="train it on one rank, with accumulation=1",
            )
        for span in schedule.spans():
            draws = uniform_of([generator_of(schedule.seed, k) for k in span], 3).double().numpy()
            rows = (draws[:, 0] * len(self.shown)).astype(np.int64)
            yield self.batch(rows, draws[:, 1:])

    def batch(self, rows: npt.NDArray[np.int64], draws: npt.NDArray[np.float64]) -> Batch:
        """The pictures of these numbers; ``draws`` ``b 2`` in [0, 1) choose the captions."""
        shown = [self.shown[row] for row in rows.tolist()]
        told = [one.draw_caption(*draw) for one, draw in zip(shown, draws.tolist(), strict=True)]
        ids, mask = tokenise(self.tokenizer, [text + clause for text, clause in told])
        # A caption is true of a picture that has its text and the background that it says, if any.
        backgrounds = [one.draw_caption(0, 0)[1] for one in shown]
        true = [
            [text in self.known[row] and clause in ("", behind) for text, clause in told]
            for row, behind in zip(rows.tolist(), backgrounds, strict=True)
        ]
        return torch.from_numpy(self.looks[rows]), ids, mask, torch.tensor(true)

    def prepare(self, batch: Batch, device: torch.device, timers: Timers) -> Batch:
        """Bring it to the device; what is frozen was computed before."""
        looks, ids, mask, true = (part.to(device) for part in batch)
        return looks, ids, mask, true

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """InfoNCE, and the sharpness that was learned."""
        looks, ids, mask, true = batch
        agreement = self.module.agreement(looks, ids, mask)
        loss = contrastive_loss(agreement, self.module.scale, true)
        return {"loss": loss, "scale": self.module.scale.detach()}

    @torch.no_grad()
    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """R-precision@1 on real held-out pictures, by split."""
        assert isinstance(module, Judge)
        return {
            split: float(
                hits(
                    ranks_of(agreement_of(module, self.tokenizer, held.looks, held.trials)), 1
                ).mean()
            )
            for split, held in self.held.items()
        }


@torch.no_grad()
def agreement_of(
    judge: Judge,
    tokenizer: PreTrainedTokenizerBase,
    looks: LooksArray,
    trials: Sequence[Trial],
) -> npt.NDArray[np.float32]:
    """How well each picture agrees with the captions of its trial, ``n ways``; of its number."""
    known = {text: None for trial in trials for text in trial.captions}
    place = {text: number for number, text in enumerate(known)}
    texts, device = list(known), judge.log_scale.device
    embedded = [
        judge.text(*(part.to(device) for part in tokenise(tokenizer, texts[at : at + 256])))
        for at in range(0, len(texts), 256)
    ]
    captions = torch.cat(embedded)
    chosen = torch.tensor([[place[text] for text in trial.captions] for trial in trials])
    pictures = judge.image(torch.from_numpy(looks).to(device))
    found = torch.stack(
        [captions[row] @ picture for row, picture in zip(chosen.to(device), pictures, strict=True)]
    )
    return np.asarray(found.cpu().numpy(), dtype=np.float32)


def tokenise(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> tuple[TokenIds, TextMask]:
    """Ids and mask of captions, padded to the longest; at most 48 tokens of each count."""
    found = tokenizer(
        list(texts), padding=True, truncation=True, max_length=MOST_TOKENS, return_tensors="pt"
    )
    return found["input_ids"], found["attention_mask"].bool()
