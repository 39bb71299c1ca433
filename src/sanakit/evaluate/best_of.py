"""Best of several: draw a prompt many times, and keep what a scorer likes most.

A scorer sees all drawings of a prompt at once and says a number for each, the higher the better: so
it may compare them with each other. One that looks at each alone, as CLIP does, says so by an
attribute ``alone`` that is true; it is shown them one by one, and only the best are held.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from PIL import Image
from torch import Tensor

from sanakit.data.captions.scoring import DualEncoder
from sanakit.data.captions.vision_models import find_vision_model
from sanakit.errors import ConfigError
from sanakit.models.published import say_once
from sanakit.pipeline.aspect_ratios import check_count
from sanakit.untrusted import shown

Scorer: TypeAlias = Callable[[Sequence[Image.Image], str], Sequence[float]]
BATCH = 16
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


def scores_of(scorer: Scorer, images: Sequence[Image.Image], prompt: str) -> list[float]:
    """What a scorer says, made sure of.

    Raises:
        ConfigError: not one finite number for each picture.
    """
    said = list(scorer(images, prompt))
    if len(said) != len(images):
        raise ConfigError(f"the scorer gave {len(said)} scores for {len(images)} pictures")
    try:
        scores = [float(score) for score in said]
    except (TypeError, ValueError):
        scores = [math.nan]
    for score in scores:
        if not math.isfinite(score):
            raise ConfigError(f"the scorer gave {shown(said)}", hint="finite numbers, one each")
    return scores


def best(scores: Sequence[float], keep: int) -> list[int]:
    """Places of the ``keep`` highest, the highest first; of equals the first drawn."""
    return sorted(range(len(scores)), key=lambda place: (-scores[place], place))[:keep]


def clip_scorer(model: str | Path, *, device: str = "cpu", offline: bool = False) -> Scorer:
    """Make a scorer of a model of CLIP or SigLIP: 100 times the cosine of picture and prompt.

    Args:
        model: a folder of `save_pretrained`, or ``owner/name``, which the hub is asked for.
        device: where it runs, in fp32.
        offline: fail rather than ask the hub.

    Raises:
        MissingModelError: there is no such model. ConfigError: it does not compare pictures and
            texts.
    """
    folder = find_vision_model(str(model), offline=offline)
    return ClipScorer(DualEncoder(folder, dtype="float32", device=device))


class ClipScorer:
    """The cosine of each picture and the prompt, by a dual encoder; the last prompt is kept."""

    alone = True

    def __init__(self, encoder: DualEncoder) -> None:
        self.encoder = encoder
        self._said: tuple[str, Tensor] | None = None

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image], prompt: str) -> list[float]:
        """Scores of the pictures."""
        if self._said is None or self._said[0] != prompt:
            if (tokens := self.encoder.tokens(prompt)) > self.encoder.limit:
                say_once(f"the scorer reads {self.encoder.limit} tokens of a prompt of {tokens}")
            self._said = prompt, self.encoder.texts([prompt])[0]
        found: list[float] = []
        for first in range(0, len(images), BATCH):
            seen = self.encoder.pictures(images[first : first + BATCH])
            found += (100 * seen @ self._said[1]).tolist()
        return found
