"""R-precision of a model: it draws the captions of held-out pictures, and a judge looks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recipes.glyph.data.pictures import GlyphPictures
from recipes.glyph.evaluate.judge_files import SavedJudge
from recipes.glyph.evaluate.judge_run import HELD_SPLITS, held_pictures
from recipes.glyph.evaluate.judge_samples import LooksArray, Shown, data_revision, looks_of
from recipes.glyph.evaluate.judge_training import agreement_of
from recipes.glyph.evaluate.pages import Group, Tile, bars, sheet
from recipes.glyph.evaluate.retrieval import (
    AT,
    WAYS,
    Ranks,
    Trial,
    by_style,
    ranks_of,
    shuffled,
    split_figures,
)
from recipes.glyph.evaluate.visual_features import Sight
from sanakit.charts import save
from sanakit.errors import ConfigError
from sanakit.evaluate.figures import Evaluation
from sanakit.evaluate.pictures import GenerationSettings, generate_pictures
from sanakit.pipeline.images import Pixels, from_pixels
from sanakit.pipeline.pipeline import Pipeline

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
    """What became of each prompt, for whoever wants to count otherwise."""
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
    """The first hits and the first misses in the order of the prompts: nobody chose them."""
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
