"""The judge of the glyph set as a scorer: for the best of several, and as a reward."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from recipes.glyph.evaluate.judge import load_judge, tokenise
from recipes.glyph.evaluate.judge_samples import sight_of
from sanakit.evaluate.features import load_features
from sanakit.pipeline.pixels import from_pixels


class JudgeScorer:
    """100 times the cosine of each picture and the prompt, by a judge of `eval train-judge`."""

    alone = True

    def __init__(self, judge: str | Path, *, features: Path | None = None) -> None:
        """Read the judge's folder and the network that it sees with.

        Raises:
            MissingModelError: either is not there. Others as `load_judge`.
        """
        saved = load_judge(Path(judge))
        self.judge, self.tokenizer = saved.judge, saved.tokenizer
        self.sight = sight_of(load_features(features))

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], prompt: str) -> list[float]:
        """Scores of the pictures."""
        pixels = np.stack([np.asarray(image.convert("RGB")) for image in images])
        looks = self.sight(from_pixels(pixels))
        ids, mask = tokenise(self.tokenizer, [prompt])
        return (100 * self.judge.agreement(looks, ids, mask)[:, 0]).tolist()
