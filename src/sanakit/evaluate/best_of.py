"""Best of several: draw a prompt many times, and keep what a scorer likes most.

A scorer that looks at each drawing alone is shown them one by one, and only the best are held.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image

from sanakit.data.captions.scorers import Scorer, scores_of
from sanakit.errors import ConfigError
from sanakit.pipeline.aspect_ratios import check_count
from sanakit.untrusted import shown

DECIDED = {
    "generator": "the i-th drawing has seed + i",
    "latents": "every drawing has noise of its own",
    "num_images_per_prompt": "of says how many are drawn",
    "output_type": "a scorer looks at pictures",
    "return_dict": "what is kept comes back with seed and score",
}
CALLED = {"pipe": "SanaPipeline.from_pretrained(...)", "scorer": "clip_scorer(FOLDER) makes one"}


class Kept(NamedTuple):
    """A drawing that was kept."""

    image: Image.Image
    seed: int
    score: float


def best_of(
    pipe: Callable[..., Any],
    prompt: str,
    *,
    scorer: Scorer,
    of: int = 4,
    keep: int = 1,
    seed: int = 0,
    **arguments: Any,
) -> list[Kept]:
    """Draw a prompt ``of`` times and give the ``keep`` best, the best first.

    Args:
        pipe: any pipeline that takes a prompt and ``generator``, and gives ``images``.
        prompt: what to draw, and what the scorer compares with.
        scorer: gives a finite number for each of the pictures, higher is better.
        of: how many are drawn.
        keep: how many come back.
        seed: of the first; the i-th is what a generator of ``seed + i`` draws alone.
        **arguments: of the pipeline's call.

    Raises:
        ConfigError: several prompts, no pipeline or scorer, fewer drawings than are to be kept,
            an argument that is decided here, or scores that are not one finite number for each
            picture.
    """
    if not isinstance(prompt, str):
        raise ConfigError(
            f"prompt is a {type(prompt).__name__}", hint="one string; call it once for each prompt"
        )
    for name, value in (("pipe", pipe), ("scorer", scorer)):
        if not callable(value):
            raise ConfigError(f"{name}={shown(value)} cannot be called", hint=CALLED[name])
    check_keep(of, keep)
    check_count(of, seed)
    for name in DECIDED.keys() & arguments.keys():
        raise ConfigError(f"best_of takes no {name}", hint=DECIDED[name])
    alone = bool(getattr(scorer, "alone", False))
    held: list[Kept] = []
    for one in range(seed, seed + of):
        image = pipe(prompt, generator=torch.Generator().manual_seed(one), **arguments).images[0]
        held.append(Kept(image, one, scores_of(scorer, [image], prompt)[0] if alone else 0.0))
        if alone:
            held = [held[place] for place in best([kept.score for kept in held], keep)]
    if not alone:
        scores = scores_of(scorer, [kept.image for kept in held], prompt)
        held = [held[place]._replace(score=scores[place]) for place in best(scores, keep)]
    return held


def check_keep(of: int, keep: int) -> None:
    """Refuse to keep none, or more than are drawn."""
    if not 1 <= keep <= of:
        raise ConfigError(
            f"{keep} of {of} drawings cannot be kept", hint=f"keep 1 to {of}, or draw more"
        )


def best(scores: Sequence[float], keep: int) -> list[int]:
    """Places of the ``keep`` highest, the highest first; of equals the first drawn."""
    return sorted(range(len(scores)), key=lambda place: (-scores[place], place))[:keep]
