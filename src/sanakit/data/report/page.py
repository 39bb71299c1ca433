"""The report as one HTML page that needs no other file, and the contact sheet beside it."""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

import numpy as np
from jinja2 import Environment
from markupsafe import Markup

from sanakit.charts import bars, svg
from sanakit.data.report.facts import CaptionerFacts, Facts, gather
from sanakit.data.report.sheet import Shown, contact_sheet, jpeg, png, show_samples
from sanakit.data.training_set import REPORT, TrainingSet
from sanakit.data.units import clear_leftovers
from sanakit.files import write_atomically

PAGE, SHEET = "index.html", "contact-sheet.png"
_SIDES = (0, 64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
_RATIOS = ((1, 4), (1, 3), (1, 2), (9, 16), (2, 3), (3, 4), (1, 1), (4, 3), (3, 2), (16, 9), (2, 1),
           (3, 1), (4, 1))  # fmt: skip
_SHARES = (0.05, 0.5, 0.95)
_MOST_BINS = 24


def write_report(training_set: TrainingSet, *, choose: int = 24) -> Path:
    """Write `report/index.html` and `report/contact-sheet.png`; gives the path of the page.

    The pictures shown are those of the shards, and of the source where none are built yet. The
    same set gives the same bytes.

    Raises:
        DataError: the scan is not finished, a file is damaged, or the disk refuses.
    """
    facts = gather(training_set, choose=choose)
    shown = show_samples(facts.chosen, training_set, facts.index)
    folder = training_set.folder / REPORT
    folder.mkdir(parents=True, exist_ok=True)
    clear_leftovers(folder)
    write_atomically(folder / SHEET, png(contact_sheet(shown)))
    write_atomically(folder / PAGE, page(facts, shown).encode("utf-8", "backslashreplace"))
    return folder / PAGE


def page(facts: Facts, shown: Sequence[Shown]) -> str:
    """The whole page."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["base64"] = lambda image: base64.b64encode(jpeg(image)).decode()
    template = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    words: Counter[int] = Counter()
    for captioner in facts.captioners.values():
        words.update(captioner.words)
    buckets = facts.index.buckets if facts.index else {}
    counts = {
        f"{height} x {width}": sum(shard.samples for shard in shards)
        for (height, width), shards in buckets.items()
    }
    return environment.from_string(template).render(
        facts=facts,
        shown=shown,
        chart=lambda rows, label, upright=True: Markup(svg(bars(rows, upright=upright), label)),
        headline=_headline(facts),
        bucket_counts=list(counts.items()),
        buckets=[
            (name, f"{number:,}", f"{number / sum(counts.values()):.1%}", f"{len(shards):,}",
             _bytes(sum(shard.bytes for shard in shards)))
            for (name, number), shards in zip(counts.items(), buckets.values(), strict=True)
        ],
        sides=_named_sides(facts.sides),
        ratios=_named_ratios(facts.ratios),
        captioners=[
            (name, f"{one.captions:,}", f"{one.captions / max(1, facts.samples):.0%}",
             _quantiles(one.words), _mean_score(one))
            for name, one in facts.captioners.items()
        ],
        words=binned(words),
        scores={name: binned(one.scores) for name, one in facts.captioners.items() if one.scores},
        reasons=[(one.reason, one.count) for one in facts.left_out],
        licences=[(name, f"{count:,}") for name, count in facts.licences.most_common()],
    )  # fmt: skip


def binned(
    values: Mapping[int, int] | Mapping[float, int], most: int = _MOST_BINS
) -> list[tuple[str, int]]:
    """Counts of numbers as counts of at most ``most`` equal, round ranges, by where they begin."""
    if not values:
        return []
    low, high = min(values), max(values)
    whole = all(value == int(value) for value in values)
    step = _round_step((high - low) / (most - 2), whole=whole)
    # 0.3 is the third tenth, though 0.3 / 0.1 is below 3 in binary.
    place = {value: math.floor(value / step + 1e-9) for value in values}
    first = place[low]
    counts = [0] * (place[high] - first + 1)
    for value, count in values.items():
        counts[place[value] - first] += count
    return [(f"{(first + number) * step:g}", count) for number, count in enumerate(counts)]


def _round_step(step: float, *, whole: bool) -> float:
    """The next of 1, 2, 5, 10, ... times a power of ten; at least 1 for whole numbers."""
    if whole:
        step = max(1.0, step)
    if step <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def _headline(facts: Facts) -> dict[str, str]:
    numbers = {
        "pictures": f"{facts.samples:,}",
        "left out": f"{facts.refused:,}",
        "of these duplicates": f"{facts.duplicates:,}",
        "captions": f"{facts.captions:,}",
        "pictures without captions": f"{facts.without_captions:,}",
    }
    if facts.index is not None:
        numbers["enlarged to their bucket"] = f"{facts.enlarged:,}"
        size = sum(shard.bytes for shard in facts.index.shards)
        numbers[f"in {len(facts.index.shards):,} shards"] = _bytes(size)
    return numbers


def _named_sides(counts: Counter[int]) -> list[tuple[str, int]]:
    sides: Counter[int] = Counter()
    for side, count in counts.items():
        sides[max(edge for edge in _SIDES if edge <= side)] += count
    used = [edge for edge in _SIDES if min(sides, default=0) <= edge <= max(sides, default=0)]
    return [(str(edge), sides[edge]) for edge in used]


def _named_ratios(ratios: Counter[float]) -> list[tuple[str, int]]:
    """Pictures by the nearest of the ratios that people have names for."""
    counts: Counter[tuple[int, int]] = Counter()
    for ratio, count in ratios.items():
        tall = math.log(max(ratio, 0.01))
        counts[min(_RATIOS, key=lambda one: abs(math.log(one[1] / one[0]) - tall))] += count
    used = [number for number, one in enumerate(_RATIOS) if counts[one]]
    shown = _RATIOS[min(used, default=0) : max(used, default=0) + 1]
    return [(f"{width}:{height}", counts[width, height]) for width, height in shown]


def _quantiles(counts: Counter[int]) -> str:
    values = sorted(counts)
    ends = np.cumsum([counts[value] for value in values])
    ranks = [math.ceil(share * ends[-1]) for share in _SHARES]
    return ", ".join(str(values[np.searchsorted(ends, rank)]) for rank in ranks)


def _mean_score(facts: CaptionerFacts) -> str:
    number = sum(facts.scores.values())
    mean = sum(score * count for score, count in facts.scores.items()) / max(1, number)
    return f"{mean:.1f}" if number else "-"


def _bytes(number: int) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"
