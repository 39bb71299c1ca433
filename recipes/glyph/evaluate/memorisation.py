"""The family "memorisation": does a model draw its training pictures again?

For each drawn picture the nearest training picture is found, and so it is for real pictures that
were never trained on: a model that copies draws nearer to training than new real pictures are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from torch import Tensor

from recipes.glyph.data.mixture import Sample
from recipes.glyph.data.pictures import GlyphPictures
from recipes.glyph.evaluate.generation import draw_for
from recipes.glyph.evaluate.pictures import WHITE, GlyphSamples, held_samples, known_samples
from sanakit.charts import Mark, histograms, save, sheet
from sanakit.errors import ConfigError
from sanakit.evaluate.distances import nearest
from sanakit.evaluate.features import NAME, Describer, FeatureNetwork, features_of, middle_square
from sanakit.evaluate.figures import Evaluation, Figure, bootstrap, mean_figure
from sanakit.evaluate.pictures import GenerationSettings
from sanakit.pipeline.pipeline import Pipeline
from sanakit.pipeline.pixels import Pixels, from_pixels

Prompts = Literal["held", "train"]
QUANTILE = 0.01
LEAST = 20
SHEET = "nearest.png"
SHOWN = 8
THUMBNAIL = 16
"""Side of the pictures that are compared pixel by pixel, px."""
_PART = 8192


class Thumbnails:
    """Pictures at 16 x 16 px, each pixel the mean of an area.

    They are scaled so that the Euclidean distance of two is the root mean square of their
    differences, in levels of 0 to 255.
    """

    fingerprint = f"thumbnails-{THUMBNAIL}"

    def __call__(self, pictures: Pixels, /) -> Tensor:
        """Pixels ``b h w 3`` to ``b 768``."""
        image = middle_square(from_pixels(pictures))
        small = F.adaptive_avg_pool2d(image, THUMBNAIL).flatten(1)
        return small * (127.5 / small.shape[1] ** 0.5)


@dataclass(frozen=True)
class Nearest:
    """For each picture its nearest known one and how far it is."""

    index: npt.NDArray[np.int64]
    distance: npt.NDArray[np.float64]


def nearest_of(rows: npt.NDArray[np.float32], known: npt.NDArray[np.float32]) -> Nearest:
    """The nearest of many known rows, which become float64 some at a time."""
    best = np.full(len(rows), np.inf)
    index = np.zeros(len(rows), dtype=np.int64)
    for first in range(0, len(known), _PART):
        place, distance = nearest(rows, known[first : first + _PART])
        closer = distance < best
        best[closer], index[closer] = distance[closer], place[closer] + first
    return Nearest(index, best)


def evaluate_memorisation(
    pipeline: Pipeline,
    pictures: GlyphPictures,
    network: FeatureNetwork,
    *,
    model: str,
    data: str,
    out: Path,
    cache: Path,
    prompts: Prompts = "held",
    count: int = 1000,
    reference: int = 5000,
    settings: GenerationSettings | None = None,
    report: Callable[[str], object] = lambda line: None,
) -> Evaluation:
    """Draw, search, and write figures, two histograms and a sheet of pairs into ``out``.

    ``count`` captions are drawn, the same ones as for "generation" where ``prompts`` is "held", and
    those on white are compared with training pictures on white: by features with ``reference`` of
    them, by pixels with all. Against both stand real held-out pictures on white.

    Raises:
        ConfigError: too few prompts are on white; as `Pipeline.generate`.
        DataError: a split is empty.
    """
    settings = settings or GenerationSettings()
    held = held_samples(pictures, count)
    asked = held if prompts == "held" else known_samples(pictures, count)
    drawn = draw_for(pipeline, GlyphSamples(pictures, asked), settings, cache=cache, report=report)
    on_white = [row for row, one in enumerate(asked) if one.background == WHITE]
    real = GlyphSamples(pictures, _white(pictures, held))
    if min(len(on_white), len(real)) < LEAST:
        raise ConfigError(
            f"{len(on_white)} drawn and {len(real)} real pictures on white are too few",
            hint=f"draw more than count={count}",
        )
    everything = [Sample(caption="", background=WHITE, number=int(i)) for i in _train(pictures)]
    some = known_samples(pictures, reference)
    found = [
        _search(network, "features", drawn.pixels[on_white], real, some, cache, report),
        _search(Thumbnails(), "pixels", drawn.pixels[on_white], real, everything, cache, report),
    ]
    evaluation = Evaluation(
        family="memorisation",
        model=model,
        data=data,
        settings={
            "prompts": f"{len(on_white):,} on white of {len(asked):,} captions of the "
            f"{'held-out splits' if prompts == 'held' else 'training split'}",
            "features": f"{NAME}; Euclidean distance to {len(found[0].known):,} training pictures",
            "pixels": f"{THUMBNAIL} x {THUMBNAIL} px; root mean square in levels of 255, to all "
            f"{len(found[1].known):,} training pictures",
            "real": f"{len(real):,} held-out pictures on white",
            "drawing": asdict(settings),
        },
        figures=[figure for each in found for figure in each.figures()],
        details={each.name: each.details() for each in found},
    )
    out.mkdir(parents=True, exist_ok=True)
    evaluation.save(out)
    rows: list[tuple[str, Pixels]] = []
    labels: dict[int, Sequence[str]] = {}
    for each in found:
        each.plot(model, out)
        first = np.argsort(each.drawn.distance, kind="stable")[:SHOWN]
        places = [int(each.drawn.index[row]) for row in first]
        pairs = GlyphSamples(pictures, [each.known.samples[place] for place in places])
        labels[len(rows)] = [asked[on_white[row]].caption for row in first]
        labels[len(rows) + 1] = [
            f"{each.drawn.distance[row]:.2f} {label}"
            for row, label in zip(first, pairs.labels, strict=True)
        ]
        rows += [
            (f"drawn, nearest to training by {each.name}", drawn.pixels[on_white][first]),
            ("the training picture", pairs[:]),
        ]
    save(sheet(rows, labels, title=f"{model}: the {SHOWN} nearest of all"), out / SHEET)
    return evaluation


@dataclass(frozen=True)
class _Search:
    name: str
    known: GlyphSamples
    drawn: Nearest
    real: Nearest

    @property
    def threshold(self) -> float:
        """What one in a hundred new real pictures is nearer than."""
        return float(np.quantile(self.real.distance, QUANTILE))

    def figures(self) -> list[Figure]:
        near = self.drawn.distance < self.threshold
        what = f"by {self.name}"
        return [
            mean_figure(
                f"share of drawn nearer than 1 % of held-out real, {what}",
                near.astype(float),
                better="lower",
            ),
            _median(f"median distance to training, drawn, {what}", self.drawn.distance),
            _median(f"median distance to training, held-out real, {what}", self.real.distance),
        ]

    def details(self) -> dict[str, object]:
        return {
            "threshold": self.threshold,
            "drawn": [round(float(value), 4) for value in self.drawn.distance],
            "real": [round(float(value), 4) for value in self.real.distance],
        }

    def plot(self, model: str, out: Path) -> None:
        image = histograms(
            {"drawn": self.drawn.distance, "held-out real": self.real.distance},
            title=f"{model}: distance to the nearest training picture, by {self.name}",
            axis="distance",
            marks=[Mark(at=self.threshold, label="1 % of held-out real are nearer")],
        )
        save(image, out / f"{self.name}.png")


def _search(
    describer: Describer,
    name: str,
    drawn: Pixels,
    real: GlyphSamples,
    known: Sequence[Sample],
    cache: Path,
    report: Callable[[str], object],
) -> _Search:
    samples = GlyphSamples(real.pictures, _white(real.pictures, known))

    def described(what: str, some: Pixels | GlyphSamples) -> npt.NDArray[np.float32]:
        def told(line: str) -> None:
            report(f"{name}, {what}: {line}")

        asked = some.asked if isinstance(some, GlyphSamples) else None
        return features_of(describer, some, asked=asked, cache=cache, report=told)

    train = described("training", samples)
    return _Search(
        name,
        samples,
        drawn=nearest_of(described("drawn", drawn), train),
        real=nearest_of(described("held-out real", real), train),
    )


def _white(pictures: GlyphPictures, samples: Sequence[Sample]) -> list[Sample]:
    """The samples on white instead, but for those that would vanish on it."""
    found = []
    for one in samples:
        assert one.number is not None
        if WHITE not in pictures.records[one.number].hidden_on:
            found.append(replace(one, background=WHITE))
    return found


def _train(pictures: GlyphPictures) -> npt.NDArray[np.int64]:
    rows = pictures.indices("train")
    return rows[[pictures.records[row].weight > 0 for row in rows.tolist()]]


def _median(name: str, values: npt.NDArray[np.float64]) -> Figure:
    def statistic(rows: npt.NDArray[np.float64]) -> float:
        return float(np.median(rows))

    low, high = bootstrap(values, statistic)
    return Figure(name=name, value=statistic(values), low=low, high=high, count=len(values))
