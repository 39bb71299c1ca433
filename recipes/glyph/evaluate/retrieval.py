"""R-precision: how often a picture's own caption is found among others, asked of a judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerBase

from recipes.glyph.data.pictures import GlyphPictures
from recipes.glyph.evaluate.judge import Judge, SavedJudge, tokenise
from recipes.glyph.evaluate.judge_samples import (
    LooksArray,
    Shown,
    Sight,
    data_revision,
    draw_shown,
    looks_of,
)
from recipes.glyph.evaluate.pages import Group, Tile, bars, sheet
from sanakit.charts import save
from sanakit.errors import ConfigError, DataError
from sanakit.evaluate.figures import Evaluation, Figure, bootstrap, mean_figure
from sanakit.evaluate.pictures import GenerationSettings, generate_pictures
from sanakit.pipeline.pipeline import Pipeline
from sanakit.pipeline.pixels import Pixels, from_pixels

WAYS = 100
POOL = 4_000
HELD_SPLITS = {"held_style": "held-out styles", "held_concept": "held-out concepts"}
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


COUNT = 200
BARS, SHEET = "bars.png", "sheet.png"
SHOWN = 8
"""Hits on the sheet, and misses."""

Report = Callable[[str], object]


def evaluate_retrieval(
    pipeline: Pipeline,
    saved: SavedJudge,
    sight: Sight,
    *,
    data: Path,
    out: Path,
    cache: Path,
    count: int = COUNT,
    ways: int = WAYS,
    seed: int = 0,
    settings: GenerationSettings | None = None,
    report: Report = print,
) -> Evaluation:
    """Measure on ``count`` captions of either held-out split; write figures, bars and a sheet.

    What was drawn stays in ``cache``, so that an interrupted call goes on where it was. The
    ceiling is of the real pictures with the same captions, the floor of the model's pictures with
    each other's.

    Raises:
        ConfigError: a count below 2.
        DataError: other data than the judge was trained on, or pictures that it was taught on.
    """
    if count < 2:
        raise ConfigError(f"count={count}: with one picture nothing is shuffled", hint="use 2")
    settings = settings or GenerationSettings()
    pictures = GlyphPictures.open(data, saved.origin.size)
    revision = data_revision(data)
    found = {
        split: held_pictures(pictures, split=split, count=count, seed=seed, ways=ways)
        for split in HELD_SPLITS
    }
    ids = [identity for shown, _ in found.values() for one in shown for identity in one.ids]
    saved.check(data=revision, sight=sight, ids=ids)
    figures, details, groups, rows = [], {}, [], []
    for split, title in HELD_SPLITS.items():
        shown, trials = found[split]
        report(f"{title}: {len(shown)} captions")
        drawn = generate_pictures(
            pipeline, [one.sample.caption for one in shown], settings, cache=cache, report=report
        )
        real = looks_of(sight, shown, pictures, cache=cache, revision=revision, report=report)
        agreement, ranks = _judged(saved, trials, _looks(sight, drawn), real, seed=seed)
        measured = split_figures(title, **ranks)
        figures += measured
        by_name = {figure.name: figure for figure in measured}
        for at in AT:
            name = f"R-precision@{at}, {title}"
            parts = (name, f"{name}: real pictures", f"{name}: shuffled captions")
            group = Group(name=f"@{at}, {title}", figures=[by_name[part] for part in parts])
            groups.append(group)
        details[split] = {
            "by style": by_style(shown, model=ranks["model"], real=ranks["ceiling"]),
            "prompts": _lines(shown, trials, agreement, ranks),
        }
        rows += _tiles(title, trials, agreement, ranks["model"], drawn)
    evaluation = Evaluation(
        family="retrieval",
        model=pipeline.components.name,
        data=f"{data}, revision {revision}, {pictures.size} px",
        settings={
            "prompts of a split": count,
            "ways": ways,
            "seed of captions and distractors": seed,
            "judge": f"{saved.origin.pictures:,} pictures, sight {saved.origin.sight}",
            **{name: value for name, value in asdict(settings).items() if value is not None},
        },
        figures=figures,
        details=details,
    )
    evaluation.save(out)
    names = ("the model", "real pictures", "shuffled captions")
    save(bars(groups, names, title=f"R-precision, {ways} captions, 95 % intervals"), out / BARS)
    save(sheet(rows, title="The first hits and the first misses"), out / SHEET)
    return evaluation


def _judged(
    saved: SavedJudge,
    trials: Sequence[Trial],
    drawn: LooksArray,
    real: LooksArray,
    *,
    seed: int,
) -> tuple[Any, dict[str, Ranks]]:
    """The agreement of what was drawn, and all ranks."""

    def asked(looks: LooksArray, about: Sequence[Trial]) -> Any:
        return agreement_of(saved.judge, saved.tokenizer, looks, about)

    agreement = asked(drawn, trials)
    return agreement, {
        "model": ranks_of(agreement),
        "ceiling": ranks_of(asked(real, trials)),
        "floor": ranks_of(asked(drawn, shuffled(trials, seed))),
    }


def _looks(sight: Sight, drawn: Pixels) -> LooksArray:
    parts = [sight(from_pixels(drawn[at : at + 32])) for at in range(0, len(drawn), 32)]
    return torch.cat(parts).half().numpy()


def _lines(
    shown: Sequence[Shown], trials: Sequence[Trial], agreement: Any, ranks: Mapping[str, Ranks]
) -> list[dict[str, Any]]:
    """What became of each prompt, so that it can be counted otherwise."""
    return [
        {
            "prompt": trial.captions[0],
            "id": one.ids[0],
            "style": one.style,
            "rank": int(ranks["model"][number]) + 1,
            "rank of the real": int(ranks["ceiling"][number]) + 1,
            "preferred": trial.captions[int(np.argmax(agreement[number]))],
        }
        for number, (one, trial) in enumerate(zip(shown, trials, strict=True))
    ]


def _tiles(
    title: str, trials: Sequence[Trial], agreement: Any, ranks: Ranks, drawn: Pixels
) -> list[tuple[str, list[Tile]]]:
    """The first hits and the first misses in the order of the prompts: they are not chosen."""
    rows = []
    for name, chosen in (("hits", ranks < 1), ("misses", ranks >= 1)):
        places = np.flatnonzero(chosen)[:SHOWN].tolist()
        tiles = [
            Tile(
                pixels=drawn[place],
                caption=trials[place].captions[0],
                seen=""
                if name == "hits"
                else f"judged: {trials[place].captions[1 + int(np.argmax(agreement[place][1:]))]}",
            )
            for place in places
        ]
        if tiles:
            rows.append((f"{title}: {name}", tiles))
    return rows


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


def held_pictures(
    pictures: GlyphPictures, *, split: str, count: int, seed: int, ways: int = WAYS
) -> tuple[list[Shown], list[Trial]]:
    """Pictures of a held-out split and their trials: the same for the same seed."""
    pool = draw_shown(pictures, split=split, count=max(POOL, count), seed=seed)
    shown = pool[:count]
    return shown, trials_of(shown, pool, seed=seed, ways=ways)
