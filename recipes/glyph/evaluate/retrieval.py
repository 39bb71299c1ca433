"""R-precision: does a judge find a picture's own caption among captions of other concepts?

A trial is one picture and 100 captions, its own first. The 99 others are drawn as its own was, from
the same split, each of another concept; all say of the background what the own caption says, so
that the background gives nothing away. The picture is a hit at k if fewer than k of the others
agree with it as well as its own or better. Source: Xu et al. 2018 (AttnGAN), section 4.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recipes.glyph.evaluate.judge_samples import Shown
from sanakit.errors import ConfigError, DataError
from sanakit.evaluate.figures import Figure, bootstrap, mean_figure

WAYS = 100
AT = (1, 5)

Ranks = npt.NDArray[np.int64]
"""Of each picture: how many of the other captions agree at least as well as its own."""
Hits = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Captions for one picture, its own first; ``concepts`` are those of the captions."""

    captions: tuple[str, ...]
    concepts: tuple[str, ...]


def trials_of(
    shown: Sequence[Shown], pool: Sequence[Shown], *, seed: int, ways: int = WAYS
) -> list[Trial]:
    """A trial for each picture, with distractors from ``pool``.

    A distractor is of another concept than the picture and than any other of its distractors, and
    none of all the captions of its picture is one of this picture's: a shared caption is never its
    own distractor, and neither is another name of the same thing.

    Raises:
        ConfigError: fewer than two ways.
        DataError: the pool holds too few other concepts.
    """
    if ways < 2:
        raise ConfigError(f"ways={ways} leaves nothing to choose from", hint="use 2 or more")
    said = [frozenset(map(_plain, one.texts)) for one in pool]
    trials = []
    for number, one in enumerate(shown):
        own = frozenset(map(_plain, one.texts))
        rng = np.random.default_rng([seed, number])
        chosen: dict[str, str] = {}
        for place in rng.permutation(len(pool)).tolist():
            other = pool[place]
            if other.concept == one.concept or own & said[place]:
                continue
            chosen.setdefault(other.concept, other.text)
            if len(chosen) == ways - 1:
                break
        else:
            raise DataError(
                f"{one.concept!r} has {len(chosen)} other concepts to be told from, not {ways - 1}",
                hint=f"ask for fewer: --ways {len(chosen) + 1}, or build more of the data set",
            )
        texts = (one.text, *chosen.values())
        trials.append(
            Trial(
                captions=tuple(text + one.clause for text in texts),
                concepts=(one.concept, *chosen),
            )
        )
    return trials


def shuffled(trials: Sequence[Trial], seed: int) -> list[Trial]:
    """The trials of other pictures: for a floor. None stays with its picture or its concept.

    Raises:
        DataError: there are too few different concepts.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(trials)).tolist()
    concepts = [trials[place].concepts[0] for place in order]
    # Along a random circle, each takes the trial of the nearest other concept after its own.
    found: dict[int, Trial] = {}
    for at, place in enumerate(order):
        steps = (
            step
            for step in range(1, len(order))
            if concepts[(at + step) % len(order)] != concepts[at]
        )
        step = next(steps, None)
        if step is None:
            raise DataError("all pictures show one concept", hint="evaluate more pictures")
        found[place] = trials[order[(at + step) % len(order)]]
    return [found[place] for place in range(len(trials))]


def ranks_of(agreement: npt.NDArray[np.floating]) -> Ranks:
    """Ranks from ``n ways``, a row a picture, its own caption first; 0 is best.

    A tie counts against the picture: a judge that says the same of all captions finds nothing. So
    does a number that is not one.
    """
    better = ~(agreement[:, 1:] < agreement[:, :1])
    return np.asarray(better.sum(axis=1), dtype=np.int64)


def hits(ranks: Ranks, at: int) -> Hits:
    """Whether each picture's own caption is among the first ``at``."""
    return ranks < at


def ratio_figure(name: str, ranks: Ranks, ceiling: Ranks, at: int) -> Figure | None:
    """R-precision as a part of the ceiling's on the same captions; resampled by picture.

    None if the judge finds no caption of a real picture: of nothing there is no part.
    """
    pairs = np.stack([hits(ranks, at), hits(ceiling, at)], axis=1).astype(float)

    def ratio(rows: npt.NDArray[np.float64]) -> float:
        mine, best = rows.sum(axis=0)
        return float(mine / max(best, 1.0))  # a resample may hold no picture that was found

    if not pairs[:, 1].any():
        return None
    low, high = bootstrap(pairs, ratio)
    return Figure(
        name=name, value=ratio(pairs), low=low, high=high, count=len(pairs), better="higher"
    )


def split_figures(split: str, *, model: Ranks, ceiling: Ranks, floor: Ranks) -> list[Figure]:
    """All figures of one split, with 95 % intervals."""
    found: list[Figure | None] = []
    for at in AT:
        name = f"R-precision@{at}, {split}"
        found += [
            mean_figure(name, hits(model, at), better="higher"),
            mean_figure(f"{name}: real pictures", hits(ceiling, at)),
            mean_figure(f"{name}: shuffled captions", hits(floor, at)),
            ratio_figure(f"{name}: part of the real", model, ceiling, at),
        ]
    return [figure for figure in found if figure is not None]


def by_style(shown: Sequence[Shown], **ranks: Ranks) -> dict[str, dict[str, float]]:
    """R-precision@1 by style, and how many pictures it is of; the most frequent style first."""
    places: dict[str, list[int]] = {}
    for number, one in enumerate(shown):
        places.setdefault(one.style, []).append(number)
    ordered = sorted(places.items(), key=lambda item: (-len(item[1]), item[0]))
    return {
        style: {
            "count": len(rows),
            **{name: round(float(hits(found[rows], 1).mean()), 4) for name, found in ranks.items()},
        }
        for style, rows in ordered
    }


def _plain(text: str) -> str:
    """A caption as it is compared: its case and an article make no other caption."""
    lowered = text.lower()
    return lowered.removeprefix("an ").removeprefix("a ")
