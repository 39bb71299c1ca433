"""`generate --best-of`: which of the drawings are written, and what they remember of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from sanakit.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from sanakit.pipeline.pipeline import Picture

Pick: TypeAlias = "Callable[[Sequence[Picture], str], list[tuple[int, Picture]]]"
REMEMBERED = ("best_of", "scorer", "score")
"""What a picture says of its choice; it is drawn again by its own seed."""


@dataclass(frozen=True)
class Choice:
    """How many are drawn, who looks at them, and how many are kept."""

    of: int
    scorer: str
    keep: int

    def opened(self, device: torch.device, *, offline: bool) -> Pick:
        """Load the scorer; give what picks the best with their places, the best first.

        Raises:
            MissingModelError, ConfigError: as `scorer_named`, and as `scores_of` when called.
        """
        import numpy as np

        from sanakit.data.captions.scorers import scorer_named, scores_of
        from sanakit.evaluate.best_of import best
        from sanakit.pipeline.pixels import to_pil

        scorer = scorer_named(self.scorer, device=str(device), offline=offline)
        # It goes into pictures, which should not tell where on a disk they were made.
        local = Path(self.scorer).is_dir() or ".py:" in self.scorer
        named = Path(self.scorer).name if local else self.scorer

        def pick(pictures: Sequence[Picture], prompt: str) -> list[tuple[int, Picture]]:
            images = to_pil(np.stack([picture.pixels for picture in pictures]))
            scores = scores_of(scorer, images, prompt)
            kept = []
            for place in best(scores, self.keep):
                told = dict(zip(REMEMBERED, (self.of, named, round(scores[place], 4)), strict=True))
                picture = pictures[place]
                kept.append((place, replace(picture, settings={**picture.settings, **told})))
            return kept

        return pick


def choice_of(of: int | None, scorer: str | None, count: int) -> Choice | None:
    """What the options ask for; None where all drawings are wanted.

    Raises:
        ConfigError: one option without the other, or fewer drawings than are to be kept.
    """
    if of is None:
        if scorer is not None:
            raise ConfigError("--scorer without --best-of", hint="--best-of 8 draws 8 to choose of")
        return None
    if scorer is None:
        raise ConfigError(
            f"--best-of {of} without --scorer",
            hint="--scorer FOLDER of CLIPModel.save_pretrained, or openai/clip-vit-base-patch32",
        )
    if count > of:
        raise ConfigError(
            f"--count {count} of --best-of {of}", hint="keep as many as are drawn, or fewer"
        )
    return Choice(of, scorer, count)
