"""The family "generation": are drawn pictures, as a whole, distributed as real ones are?

Distances are taken to real pictures of the training split. The yardstick is the held-out split, one
real picture for each prompt: those are as far from the training split as pictures of things that
were never trained on may well be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from recipes.glyph.data.pictures import GlyphPictures
from recipes.glyph.evaluate.pictures import GlyphSamples, held_samples, known_samples
from sanakit.charts import Point, lines, save, sheet
from sanakit.errors import ConfigError
from sanakit.evaluate.distances import BLOCKS, NEIGHBOURS, inside, kernel_distance
from sanakit.evaluate.features import NAME, SIDE, FeatureNetwork, Features, features_of
from sanakit.evaluate.figures import Evaluation, Figure, mean_figure
from sanakit.evaluate.frechet import Reference, ResampledDistance
from sanakit.evaluate.generation import FD, distance_figure
from sanakit.evaluate.pictures import GenerationSettings, generate_pictures
from sanakit.evaluate.restoration import Restored
from sanakit.pipeline.pipeline import Pipeline
from sanakit.pipeline.pixels import Pixels

PLOT, SHEET = "distance.png", "pictures.png"
SHOWN = 10
LEAST = 2 * BLOCKS
DRAWN, HELD, RESTORED = "drawn", "held-out real", "held-out real, restored"
Better = Literal["higher", "lower", ""]


@dataclass(frozen=True)
class Drawn:
    """One picture for each prompt, with the real pictures that the prompts are of."""

    pixels: Pixels
    real: GlyphSamples
    size: int
    """Side of the drawn pictures, px."""


def draw_for(
    pipeline: Pipeline,
    real: GlyphSamples,
    settings: GenerationSettings,
    *,
    cache: Path,
    report: Callable[[str], object] = lambda line: None,
) -> Drawn:
    """Draw one picture for each sample's caption, at its own seed; none is left out.

    Raises:
        ConfigError, NumericsError: as `Pipeline.generate`.
    """
    prompts = [one.caption for one in real.samples]
    pixels = generate_pictures(pipeline, prompts, settings, cache=cache, report=report)
    return Drawn(pixels, real, pixels.shape[1])


def evaluate_generation(
    pipeline: Pipeline,
    pictures: GlyphPictures,
    network: FeatureNetwork,
    *,
    model: str,
    data: str,
    out: Path,
    cache: Path,
    count: int = 1000,
    reference: int = 5000,
    settings: GenerationSettings | None = None,
    report: Callable[[str], object] = lambda line: None,
) -> Evaluation:
    """Draw, measure, and write figures, a plot and a sheet of pictures into ``out``.

    ``count`` held-out captions are drawn, against ``reference`` pictures of the training split.

    Raises:
        ConfigError: fewer than forty of either; as `Pipeline.generate`.
        DataError: a split is empty.
    """
    for name, value in (("count", count), ("reference", reference)):
        if value < LEAST:
            raise ConfigError(f"{name}={value}: KID needs {LEAST}", hint="1000 or more is usual")
    settings = settings or GenerationSettings()
    known = GlyphSamples(pictures, known_samples(pictures, reference))
    drawn = draw_for(
        pipeline,
        GlyphSamples(pictures, held_samples(pictures, count)),
        settings,
        cache=cache,
        report=report,
    )

    def features(what: str, some: Any, asked: object = None) -> Features:
        def told(line: str) -> None:
            report(f"{what}: {line}")

        return features_of(network, some, asked=asked, cache=cache, report=told)

    again = Restored(pipeline.components.autoencoder, drawn.real, drawn.size)
    train = features("training split", known, known.asked)
    sets = {
        DRAWN: features(DRAWN, drawn.pixels),
        HELD: features(HELD, drawn.real, drawn.real.asked),
        RESTORED: features(
            RESTORED, again, [*drawn.real.asked, pipeline.components.fingerprint, drawn.size]
        ),
    }
    report("distances")
    figures, growth = _figures(train, sets)
    evaluation = Evaluation(
        family="generation",
        model=model,
        data=data,
        settings={
            "prompts": f"{len(drawn.real):,} of held-out concepts and concept-style pairs, one "
            "caption each, one picture each",
            "reference": f"{len(known):,} pictures of the training split",
            "drawn at": f"{drawn.size} px, real at {pictures.size} px; all resized to {SIDE} px, "
            "bicubic with antialiasing",
            "features": f"{NAME}, 1,280 pooled; FD on them is not FID, and compares at equal "
            "numbers of samples only",
            "drawing": asdict(settings),
        },
        figures=figures,
        details={
            "distance_by_count": {
                name: [asdict(point) for point in points] for name, points in growth.items()
            }
        },
    )
    out.mkdir(parents=True, exist_ok=True)
    evaluation.save(out)
    title = f"{model}: distance to {len(known):,} training pictures"
    save(lines(growth, title=title, across="pictures: fewer lie farther", up=FD), out / PLOT)
    shown = drawn.real[:SHOWN]
    rows = [("drawn, the first prompts", drawn.pixels[:SHOWN]), ("real, of those captions", shown)]
    captions = [one.caption for one in drawn.real.samples[:SHOWN]]
    labels = {0: captions, 1: drawn.real.labels[:SHOWN]}
    save(sheet(rows, labels, title=f"{model}: held-out captions, unselected"), out / SHEET)
    return evaluation


def _figures(
    train: Features, sets: Mapping[str, Features]
) -> tuple[list[Figure], dict[str, list[Point]]]:
    """Figures, and the distance of the first samples of each set by their number."""
    known = Reference(train)
    distances = {name: known.resampled(rows) for name, rows in sets.items()}
    figures = [
        distance_figure(
            f"{FD}, {name}", each.estimate, each.count, better="lower" if name == DRAWN else ""
        )
        for name, each in distances.items()
    ]
    over = distances[DRAWN].over(distances[HELD])
    count = distances[DRAWN].count
    figures.append(distance_figure(f"{FD}, {DRAWN} / {HELD}", over, count, better="lower"))
    equal = train[:count]
    for name, rows in sets.items():
        better: Better = "lower" if name == DRAWN else ""
        figures.append(
            distance_figure(f"KID, {name}", kernel_distance(rows, train), count, better=better)
        )
    for name, rows in sets.items():
        better = "higher" if name == DRAWN else ""
        same = rows[: len(equal)]
        for figure, hits in (("precision", inside(same, equal)), ("recall", inside(equal, same))):
            figures.append(
                mean_figure(f"{figure} (k={NEIGHBOURS}), {name}", hits.astype(float), better=better)
            )
    growth = {name: _growth(known, rows, distances[name]) for name, rows in sets.items()}
    return figures, growth


def _growth(known: Reference, rows: Features, whole: ResampledDistance) -> list[Point]:
    found = [Point(at=n, value=known.distance(rows[:n])) for n in _halves(len(rows))]
    last = whole.estimate
    return [*found, Point(at=len(rows), value=last.value, low=last.low, high=last.high)]


def _halves(count: int) -> list[int]:
    """Half of it, a quarter and so on, the smallest first; not below forty."""
    found = []
    while (count := count // 2) >= LEAST:
        found.append(count)
    return found[::-1]
