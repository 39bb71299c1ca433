"""Solvers by steps and guidance by scale and interval, on a trained model: distances and FD."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from recipes.glyph.data.mixture import Mixture, Sample
from recipes.glyph.data.pictures import GlyphPictures
from recipes.glyph.research.autoencoders import halved
from recipes.glyph.research.sampling import (
    Way,
    decoded,
    described,
    distances,
    frechet,
    latents_by,
)
from recipes.glyph.research.short_run import is_done, keep
from sanakit.evaluate.features import load_features
from sanakit.evaluate.frechet import Reference
from sanakit.nn.processor import keep_freed_memory
from sanakit.pipeline.pipeline import Pipeline
from sanakit.pipeline.pixels import Pixels, to_pixels

BEST = Way(steps=200)
EXACT = 16
"""Prompts whose latents are compared with those of many steps; all in fp32."""
DRAWN = 96
REFERENCE = 256
DPM_STEPS, EULER_STEPS = (6, 10, 14, 20), (10, 14, 28, 50)
STEPS = (
    *(Way(steps=steps) for steps in (10, 14, 20)),
    *(Way(solver="flow-euler", steps=steps) for steps in (28, 50)),
)
GUIDED = (
    *(Way(steps=14, scale=scale) for scale in (1.0, 2.5, 8.0)),
    *(Way(steps=14, interval=interval) for interval in ((0.2, 1.0), (0.0, 0.8))),
)
ROWS = ("emoji", "emoji_3d")
"""Of the data set: what the embedded model was trained on when this was measured, version 0."""


def samples_of(pictures: GlyphPictures, split: str, count: int) -> list[Sample]:
    """Some pictures of a split, on white, in one of their captions; the same each time."""
    mixture = Mixture(pictures, split=split, composites=0, white=1)
    rng = np.random.default_rng(0)
    numbers = [n for n in mixture.numbers.tolist() if pictures.records[n].row in ROWS]
    chosen = rng.permutation(numbers)[:count]
    return [mixture.sample_of(number, rng) for number in chosen.tolist()]


def real(pictures: GlyphPictures, samples: list[Sample], side: int) -> Pixels:
    """Their pictures, halved where they are twice as large as those that are drawn."""
    mixture = Mixture(pictures, composites=0)
    parts = []
    for first in range(0, len(samples), 32):
        image = mixture.images(samples[first : first + 32])
        parts.append(to_pixels(halved(image) if pictures.size == 2 * side else image))
    return np.concatenate(parts)


def draw_by_all(
    model: str,
    data: Path,
    features: Path | None,
    results: Path,
    *,
    report: Callable[[str], object] = print,
) -> None:
    """Every way that is not done; ``model`` is drawn with its own text encoder and autoencoder."""
    keep_freed_memory()
    pipeline = Pipeline.load(model)
    parts, side = pipeline.components, pipeline.default_size
    pictures = GlyphPictures.open(data, side if (data / f"pictures-{side}").is_dir() else 2 * side)
    samples = samples_of(pictures, "held_style", DRAWN)
    prompts = [sample.caption for sample in samples]
    text = parts.prompts.encode(prompts, instruction=parts.defaults.instruction)
    null = parts.prompts.encode_null([""] * DRAWN, text)
    shape = pipeline.latent_shape(side, side)

    network = load_features(features)
    if not all(is_done(f"fd-{way.name}", results) for way in (*STEPS, *GUIDED)):
        known = real(pictures, samples_of(pictures, "train", REFERENCE), side)
        reference = Reference(described(network, known))
        if not is_done("fd-real", results):
            rows = described(network, real(pictures, samples, side))
            keep("fd-real", frechet(rows, reference), results)
        for way in (*STEPS, *GUIDED):
            if is_done(f"fd-{way.name}", results):
                continue
            latents = latents_by(way, parts.transformer, text, null, shape)
            pixels = decoded(parts.autoencoder, latents, parts.autoencoder.config.scaling_factor)
            found = frechet(described(network, pixels), reference)
            keep(f"fd-{way.name}", {"model": model, **found}, results)
            report(f"{way.name}: FD-EffNetLite0 {found['fd']:.1f}")

    if not is_done("solvers-distance", results):
        few, none = (
            type(each)(text=each.text[:EXACT], mask=each.mask[:EXACT], dropped=each.dropped[:EXACT])
            for each in (text, null)
        )

        def exactly(way: Way):  # noqa: ANN202
            report(f"exact: {way.name}")
            return latents_by(way, parts.transformer, few, none, shape, exact=True)

        best, found = exactly(BEST), {}
        ways = [
            *(Way(steps=steps) for steps in DPM_STEPS),
            *(Way(solver="flow-euler", steps=steps) for steps in EULER_STEPS),
        ]
        for way in ways:
            found[way.name] = {
                "solver": way.solver,
                "steps": way.steps,
                "rms": distances(exactly(way), best),
            }
        keep("solvers-distance", {"model": model, "best": BEST.name, "ways": found}, results)
