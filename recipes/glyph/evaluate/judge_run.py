"""How a judge is taught and measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from recipes.glyph.data.mixture import Mixture
from recipes.glyph.data.pictures import GlyphPictures
from recipes.glyph.evaluate.judge import (
    Judge,
    JudgeConfig,
    JudgeOrigin,
    SavedJudge,
    contrastive_loss,
    save_judge,
    tokenise,
)
from recipes.glyph.evaluate.judge_samples import (
    Looks,
    LooksArray,
    Shown,
    Sight,
    data_revision,
    draw_shown,
    looks_of,
)
from recipes.glyph.evaluate.retrieval import (
    AT,
    HELD_SPLITS,
    WAYS,
    Trial,
    agreement_of,
    held_pictures,
    hits,
    ranks_of,
    shuffled,
)
from sanakit.errors import ConfigError
from sanakit.evaluate.figures import Evaluation, Figure, mean_figure
from sanakit.pipeline.language_models import open_tokenizer
from sanakit.shapes import Image, TextMask, TokenIds
from sanakit.train.config import LoopConfig
from sanakit.train.loop import train
from sanakit.train.recipe import Recipe, Timers
from sanakit.train.sample_schedule import SampleSchedule, generator_of, uniform_of
from sanakit.weights.resolve import embedded_folder
from sanakit.weights.store import read_weights

Batch = tuple[Looks, TokenIds, TextMask, Tensor]
"""Looks, captions, and which captions are true of which pictures."""
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


WORK = "work"
"""Folder inside a judge's: looks and checkpoints; may go when the judge is made."""
PICTURES, HELD = 12_000, 500
_EMBEDDING = "embed_tokens.weight"
_SPREAD = 0.5
"""Of the token embeddings to begin with; what they were learned with is far from our scale."""

Report = Callable[[str], object]


@dataclass(frozen=True, kw_only=True)
class Words:
    """A tokenizer and, to begin with, an embedding ``vocabulary width`` of each of its tokens."""

    tokenizer: PreTrainedTokenizerBase
    embeddings: torch.Tensor


def embedded_words(model: str = "glyph") -> Words:
    """Those of the embedded model's language model, which has read a dictionary."""
    folder = embedded_folder(model)
    weights = read_weights(folder / "text_encoder", stem="model", dtype=torch.float32)
    return Words(
        tokenizer=cast(
            PreTrainedTokenizerBase, open_tokenizer(folder / "tokenizer", by_transformers=True)
        ),
        embeddings=next(value for name, value in weights.items() if name.endswith(_EMBEDDING)),
    )


def new_judge(sight: Sight, words: Words, looks: LooksArray, *, seed: int) -> Judge:
    """A judge that knows nothing but what words are alike."""
    torch.manual_seed(seed)
    config = JudgeConfig(
        whole_width=sight.whole_width,
        cell_width=sight.cell_width,
        vocab_size=len(words.embeddings),
    )
    judge = Judge(config)
    centred = words.embeddings - words.embeddings.mean(dim=0)
    # The directions in which words differ most, where there are more than the tower is wide.
    directions = torch.linalg.svd(centred, full_matrices=False).Vh[: config.text_width]
    known = centred @ directions.T
    with torch.no_grad():
        judge.text.embed.weight[:, : known.shape[1]] = known / known.std() * _SPREAD
    judge.image.standardise(torch.from_numpy(looks))
    return judge


def train_judge(
    data: Path,
    out: Path,
    sight: Sight,
    *,
    words: Words | None = None,
    size: int | None = None,
    count: int = PICTURES,
    held: int = HELD,
    ways: int = WAYS,
    loop: LoopConfig = JUDGE_LOOP,
    resume: bool = False,
    report: Report = print,
) -> Evaluation | None:
    """Teach a judge on ``count`` samples of the training split; None if it was interrupted.

    What was seen of the pictures, and the run's checkpoints, stay in ``out/work``. At the end the
    judge itself is judged on ``held`` real pictures of either held-out split: as they are, blurred,
    as noise, and with shuffled captions.

    Raises:
        ConfigError: a number below 1, or a folder that holds a run when ``resume`` is False.
        DataError: data that is absent, or too little of it.
    """
    for name, value in (("pictures", count), ("held", held)):
        if value < 1:
            raise ConfigError(f"{name}={value} must be at least 1")
    began, seed = time.process_time(), loop.seed
    pictures = GlyphPictures.open(data, size)
    work, revision = out / WORK, data_revision(data)
    shown = draw_shown(pictures, split="train", count=count, seed=seed)
    looks = looks_of(sight, shown, pictures, cache=work, revision=revision, report=report)
    found, trials = {}, {}
    for split in HELD_SPLITS:
        found[split], trials[split] = held_pictures(
            pictures, split=split, count=held, seed=seed, ways=ways
        )
    held_looks = {
        split: looks_of(sight, ones, pictures, cache=work, revision=revision, report=report)
        for split, ones in found.items()
    }
    words = words or embedded_words()
    judge = new_judge(sight, words, looks, seed=seed)
    known = {
        split: HeldTrials(looks=held_looks[split], trials=trials[split]) for split in HELD_SPLITS
    }
    recipe = JudgeRecipe(judge, words.tokenizer, shown, looks, known)
    if not train(recipe, loop, work / "run", resume=resume, report=report):
        return None
    origin = JudgeOrigin(
        data=revision,
        sight=sight.fingerprint,
        size=pictures.size,
        pictures=len(shown),
        images_seen=loop.total_images,
        seed=seed,
        seconds=round(time.process_time() - began, 1),
    )
    seen = frozenset(identity for one in shown for identity in one.ids)
    saved = SavedJudge(
        judge=judge.eval().requires_grad_(False),
        tokenizer=words.tokenizer,
        origin=origin,
        seen=seen,
    )
    ids = [identity for ones in found.values() for one in ones for identity in one.ids]
    saved.check(data=origin.data, sight=sight, ids=ids)
    evaluation = Evaluation(
        family="judge",
        model=f"{sum(one.numel() for one in judge.parameters()):,} parameters",
        data=f"{data}, revision {origin.data}, {pictures.size} px",
        settings={
            "pictures": len(shown),
            "images seen": loop.total_images,
            "held-out pictures of a split": held,
            "ways": ways,
            "seed": seed,
            "CPU seconds": origin.seconds,
        },
        figures=[
            figure
            for split, title in HELD_SPLITS.items()
            for figure in _figures(saved, sight, pictures, found[split], trials[split], title)
        ],
    )
    save_judge(out, saved)
    evaluation.save(out)
    return evaluation


def _figures(
    saved: SavedJudge,
    sight: Sight,
    pictures: GlyphPictures,
    shown: Sequence[Shown],
    trials: Sequence[Trial],
    title: str,
) -> list[Figure]:
    """How well the judge tells real pictures, and that it falls with what is left of them."""
    mixture = Mixture(pictures, composites=0)
    looks: dict[str, list[np.ndarray]] = {name: [] for name in SPOILED}
    for at in range(0, len(shown), 32):
        image = mixture.images([one.sample for one in shown[at : at + 32]])
        for name, spoil in SPOILED.items():
            looks[name].append(sight(spoil(image)).half().numpy())
    ranks = {
        name: ranks_of(agreement_of(saved.judge, saved.tokenizer, np.concatenate(parts), trials))
        for name, parts in looks.items()
    }
    real = np.concatenate(looks["real"])
    swapped = shuffled(trials, saved.origin.seed)
    ranks["shuffled captions"] = ranks_of(agreement_of(saved.judge, saved.tokenizer, real, swapped))
    return [
        mean_figure(f"R-precision@{at}, {title}: {name}", hits(found, at))
        for at in AT
        for name, found in ranks.items()
    ]


def _blurred(image: Image) -> Image:
    """A sixteenth of the resolution, and back."""
    side = image.shape[-1]
    small = F.interpolate(image, size=(side // 16, side // 16), mode="area")
    return F.interpolate(small, size=(side, side), mode="bilinear")


def _noise(image: Image) -> Image:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(image.shape, generator=generator) * 2 - 1


SPOILED: Mapping[str, Callable[[Image], Image]] = {
    "real": lambda image: image,
    "blurred": _blurred,
    "noise": _noise,
}
