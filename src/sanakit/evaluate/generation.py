"""The family "generation": how far what a model draws lies from real pictures, as a whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from sanakit.charts import save, sheet
from sanakit.errors import ConfigError
from sanakit.evaluate.distances import BLOCKS, Estimate, kernel_distance
from sanakit.evaluate.features import NAME, SIDE, WIDTH, FeatureNetwork, Features, features_of
from sanakit.evaluate.figures import Evaluation, Figure
from sanakit.evaluate.frechet import Reference
from sanakit.evaluate.pictures import (
    FilePictures,
    GenerationSettings,
    generate_pictures,
    pictures_to_restore,
)
from sanakit.pipeline.pipeline import Pipeline

FD = "FD-EffNetLite0"
SHEET = "pictures.png"
SHOWN = 10
DRAWN, HELD = "drawn", "held-out real"


def evaluate_generation(
    pipeline: Pipeline,
    network: FeatureNetwork,
    *,
    model: str,
    data: Path,
    held: Path | None = None,
    out: Path,
    cache: Path,
    count: int = 100,
    reference: int = 5000,
    settings: GenerationSettings | None = None,
    report: Callable[[str], object] = lambda line: None,
) -> Evaluation:
    """Draw captions, measure the distance to ``data``, and write figures and a sheet into ``out``.

    At most ``count`` captions are drawn, those of ``held`` if there is one, whose own pictures are
    then measured too: it is the distance that a perfect model would have. At most ``reference``
    pictures of ``data`` are compared with. Kernel distances are left out below forty pictures.

    Raises:
        ConfigError: fewer than two pictures; as `Pipeline.generate`.
        DataError: no pictures, or none with a caption.
    """
    for name, value in (("count", count), ("reference", reference)):
        if value < 2:
            raise ConfigError(f"{name}={value}: a distance needs 2 pictures, and better 1,000")
    settings = settings or GenerationSettings()
    asked = pictures_to_restore(held or data, count=count, captioned=True)
    known = pictures_to_restore(data, count=reference)
    prompts = asked.captions
    for path, some in ((held or data, asked), (data, known)):
        if len(some) < 2:
            raise ConfigError(f"{path}: one picture that serves, and a distance needs 2")
    pixels = generate_pictures(pipeline, prompts, settings, cache=cache, report=report)
    side = min(pixels.shape[1:3])
    known, asked = replace(known, size=side), replace(asked, size=side)

    def features(what: str, some: FilePictures) -> Features:
        def told(line: str) -> None:
            report(f"{what}: {line}")

        return features_of(network, some, asked=some.asked, cache=cache, report=told)

    sets = {DRAWN: features_of(network, pixels, cache=cache, report=report)}
    if held is not None:
        sets[HELD] = features(HELD, asked)
    if len(prompts) < WIDTH:
        report(
            f"note: {FD} (features of {NAME}) of {len(prompts):,} pictures is biased, the fewer "
            f"the larger: compare it at --count {len(prompts)} alone"
        )
    figures = _figures(sets, features("real", known))
    evaluation = Evaluation(
        family="generation",
        model=model,
        data=str(data),
        settings={
            "prompts": f"{len(prompts):,} captions of {held or data}, one picture each",
            "reference": f"{len(known):,} pictures of {data}",
            "drawn at": f"{pixels.shape[2]} x {pixels.shape[1]} px; squares of the middle, resized "
            f"to {SIDE} px, bicubic with antialiasing",
            "features": f"{NAME}, 1,280 pooled; FD on them is not FID",
            "bias": "fewer pictures lie farther by FD: it compares at equal numbers only; KID not",
            "drawing": asdict(settings),
        },
        figures=figures,
        details={"prompts": prompts},
    )
    evaluation.save(out)
    shown = slice(0, SHOWN)
    rows = [("drawn, the first prompts", pixels[shown]), ("real, of those captions", asked[shown])]
    labels = {0: prompts[shown], 1: asked.labels[shown]}
    save(sheet(rows, labels, title=f"{model}: unselected"), out / SHEET)
    return evaluation


def _figures(sets: dict[str, Features], known: Features) -> list[Figure]:
    gaussian = Reference(known)
    figures = []
    for name, rows in sets.items():
        found = gaussian.resampled(rows).estimate
        figures.append(distance_figure(f"{FD}, {name}", found, len(rows), better=_better(name)))
    for name, rows in sets.items():
        if min(len(rows), len(known)) >= 2 * BLOCKS:
            found = kernel_distance(rows, known)
            figures.append(distance_figure(f"KID, {name}", found, len(rows), better=_better(name)))
    return figures


def _better(name: str) -> Literal["lower", ""]:
    return "lower" if name == DRAWN else ""


def distance_figure(
    name: str, estimate: Estimate, count: int, *, better: Literal["higher", "lower", ""]
) -> Figure:
    """A distance of ``count`` samples with its interval as a figure."""
    return Figure(
        name=name,
        value=estimate.value,
        low=estimate.low,
        high=estimate.high,
        count=count,
        better=better,
    )
