"""What the figures of drawn pictures must rank: real before blurred before noise."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from recipes.glyph.evaluate.generation import DRAWN, HELD, RESTORED, _figures

from sanakit.evaluate.distances import kernel_distance
from sanakit.evaluate.features import CODE, WEIGHTS, FeatureNetwork, features_of, load_features
from sanakit.evaluate.frechet import frechet_distance, paired_distance
from sanakit.pipeline.pixels import Pixels, from_pixels, to_pixels
from tiny_features import tiny_features

published = pytest.mark.skipif(
    find_spec(CODE) is None or find_spec(WEIGHTS) is None,
    reason="the packages of EfficientNet-Lite0 are not installed",
)


def things(count: int, seed: int, size: int = 64) -> Pixels:
    """Rectangles and discs in plain colours on white, some with a stripe."""
    rng = np.random.default_rng(seed)
    found = np.full((count, size, size, 3), 255, dtype=np.uint8)
    across, down = np.meshgrid(np.arange(size), np.arange(size))
    for picture in found:
        x, y = rng.integers(size // 4, 3 * size // 4, 2)
        wide, high = rng.integers(size // 8, size // 3, 2)
        colour = rng.choice([[220, 30, 40], [20, 120, 220], [30, 160, 60], [20, 20, 20]])
        inside = (abs(across - x) < wide) & (abs(down - y) < high)
        if rng.random() < 0.5:
            inside = (across - x) ** 2 + (down - y) ** 2 < wide * high
        picture[inside] = colour
        if rng.random() < 0.5:
            picture[inside & (across % 8 < 3)] = 240
    return found


def blurred(pixels: Pixels) -> Pixels:
    image = from_pixels(pixels)
    return to_pixels(F.avg_pool2d(F.pad(image, (4, 4, 4, 4), mode="reflect"), 9, stride=1))


def noise(count: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


def figures(network: FeatureNetwork, drawn: Pixels, count: int, known: int) -> dict[str, float]:
    sets = {DRAWN: drawn, HELD: things(count, 1), RESTORED: blurred(things(count, 1))}
    rows = {name: features_of(network, pixels) for name, pixels in sets.items()}
    found, growth = _figures(features_of(network, things(known, 0)), rows)
    assert [point.at for point in growth[DRAWN]][-1] == count
    for figure in found:
        assert figure.low is not None
        assert figure.high is not None
        assert figure.low <= figure.value <= figure.high
    return {figure.name: figure.value for figure in found}


def test_real_is_before_blurred_and_blurred_before_noise() -> None:
    count, judge = 120, tiny_features(width=32)
    real = things(count, 2)
    good, soft, bad = (
        figures(judge, pixels, count, count) for pixels in (real, blurred(real), noise(count))
    )
    for name in ("FD-EffNetLite0, drawn", "KID, drawn", "FD-EffNetLite0, drawn / held-out real"):
        assert good[name] < soft[name] < bad[name]
    for name in ("precision (k=3), drawn", "recall (k=3), drawn"):
        assert good[name] > 0.5
        assert good[name] >= soft[name] >= bad[name]
    assert good["precision (k=3), drawn"] > bad["precision (k=3), drawn"] == 0
    # Real pictures of another draw are what the yardstick is.
    assert 0.5 < good["FD-EffNetLite0, drawn / held-out real"] < 2


@published
def test_the_published_network_ranks_them_too() -> None:
    judge = load_features()
    known = features_of(judge, things(40, 0))
    real = things(40, 2)
    rows = [features_of(judge, pixels) for pixels in (real, blurred(real), noise(40))]
    good, soft, bad = (frechet_distance(each, known) for each in rows)
    assert good < 0.7 * soft < 0.7 * bad
    good, soft, bad = (kernel_distance(each, known).value for each in rows)
    assert good < 0.5 * soft < 0.5 * bad


def test_a_few_pictures_again_and_again_cost_recall_and_not_precision() -> None:
    judge = tiny_features(width=32)
    found = figures(judge, np.tile(things(5, 3), (24, 1, 1, 1)), 120, 120)
    assert found["precision (k=3), drawn"] > 0.8
    assert found["recall (k=3), drawn"] < 0.3 < found["recall (k=3), held-out real"]


def test_the_distance_of_pairs_ranks_and_is_the_distance_of_their_sets(
    rng: torch.Generator,
) -> None:
    for count, width in ((30, 40), (90, 8)):  # fewer samples than directions, and more
        real = torch.randn(count, width, generator=rng).numpy()
        near = real + 0.1 * torch.randn(count, width, generator=rng).numpy()
        found = paired_distance(near, real)
        assert found.value == pytest.approx(frechet_distance(near, real), rel=1e-6, abs=1e-9)
        assert paired_distance(real, real).value == pytest.approx(0, abs=1e-9)
        assert found.value < paired_distance(near + 1, real).value
        # A shift that all pairs share is known to the last digit, however few there are.
        shifted = paired_distance(real + 1, real).estimate
        assert shifted.high - shifted.low < 1e-6
        assert shifted.value == pytest.approx(width, rel=1e-6)
