from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sanakit.data.images.resize_and_crop import bucket_table, fit, fitted, nearest
from sanakit.errors import ConfigError
from sanakit.pipeline.aspect_ratios import TABLES

TABLES_AT_1024 = [(height // 2, width // 2) for height, width in TABLES[64].values()]
SIDES = st.integers(1, 5000)


@pytest.mark.parametrize(("resolution", "sample_size"), [(512, 16), (1024, 32)])
def test_inference_buckets_are_the_tables_that_pictures_are_drawn_at(
    resolution: int, sample_size: int
) -> None:
    assert bucket_table(resolution, "inference") == TABLES[sample_size]


@pytest.mark.parametrize("kind", ["training", "inference"])
@pytest.mark.parametrize(("resolution", "sample_size"), [(2048, 64), (4096, 128)])
def test_large_tables_are_the_published_ones(resolution: int, sample_size: int, kind: str) -> None:
    assert bucket_table(resolution, kind) == TABLES[sample_size]


@pytest.mark.parametrize("resolution", [512, 1024])
def test_training_has_the_seven_ratios_that_only_large_inference_tables_have(
    resolution: int,
) -> None:
    training = bucket_table(resolution)
    factor = 2048 // resolution
    assert len(training) == 40
    assert {
        key: (height * factor, width * factor) for key, (height, width) in training.items()
    } == TABLES[64]


def test_the_published_256_px_table_is_a_quarter_of_that_at_1024() -> None:
    quarter = {key: (h // 4, w // 4) for key, (h, w) in TABLES[32].items()}
    assert bucket_table(256, "inference", multiple=16) == quarter
    assert any(h % 32 or w % 32 for h, w in quarter.values())


@pytest.mark.parametrize("kind", ["training", "inference", "square"])
@pytest.mark.parametrize("resolution", [32, 64, 96, 128, 224, 256, 384, 512, 768, 2880])
def test_any_resolution_has_buckets_of_multiples_of_32_by_their_own_ratios(
    resolution: int, kind: str
) -> None:
    table = bucket_table(resolution, kind)
    assert len(set(table.values())) == len(table)
    assert (resolution, resolution) in table.values()
    for key, (height, width) in table.items():
        assert height % 32 == width % 32 == 0
        assert min(height, width) >= 32
        assert height / width == pytest.approx(key, abs=0.02)
    if kind != "square":
        scaled = [(h * resolution / 1024, w * resolution / 1024) for h, w in TABLES_AT_1024]
        for size in table.values():
            off = [max(abs(a - b) for a, b in zip(size, one, strict=True)) for one in scaled]
            # Rounded to the nearest; below 32 there is nothing to round to.
            assert min(off) <= 16 or min(size) == 32


def test_square_has_one_bucket() -> None:
    assert bucket_table(128, "square") == {1.0: (128, 128)}
    assert nearest(100, 9000, bucket_table(128, "square")) == (128, 128)


@pytest.mark.parametrize("resolution", [0, -32, 500, 33])
def test_a_resolution_that_fits_no_autoencoder_is_refused_with_one_that_does(
    resolution: int,
) -> None:
    with pytest.raises(ConfigError, match=str(resolution)) as raised:
        bucket_table(resolution)
    assert bucket_table(int(raised.value.hint.split()[-1]))


def test_unknown_buckets_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'round'") as raised:
        bucket_table(512, "round")
    assert "square" in raised.value.hint


@given(height=SIDES, width=SIDES, resolution=st.sampled_from([128, 256, 512, 1024]))
def test_the_nearest_bucket_has_the_nearest_key(height: int, width: int, resolution: int) -> None:
    table = bucket_table(resolution)
    chosen = nearest(height, width, table)
    distances = {size: abs(height / width - key) for key, size in table.items()}
    assert distances[chosen] == min(distances.values())


@given(height=SIDES, width=SIDES, resolution=st.sampled_from([32, 128, 512]))
def test_a_fit_covers_the_bucket_cuts_one_side_at_most_and_equally_at_both_ends(
    height: int, width: int, resolution: int
) -> None:
    for bucket in bucket_table(resolution).values():
        how = fit(height, width, bucket)
        assert min(how.top, how.left) == 0
        assert height * how.scale >= bucket[0] * (1 - 1e-12)
        assert width * how.scale >= bucket[1] * (1 - 1e-12)
        kept = (height - 2 * how.top, width - 2 * how.left)
        assert kept[0] * how.scale == pytest.approx(bucket[0])
        assert kept[1] * how.scale == pytest.approx(bucket[1])


@given(
    height=st.integers(1, 200),
    width=st.integers(1, 200),
    bucket=st.sampled_from([(32, 32), (32, 96), (128, 64)]),
)
def test_a_fitted_picture_has_exactly_the_size_of_its_bucket(
    height: int, width: int, bucket: tuple[int, int]
) -> None:
    result = fitted(np.full((height, width, 3), (10, 128, 250), np.uint8), bucket)
    assert result.shape == (*bucket, 3)
    assert result.dtype == np.uint8
    # Interpolation of a constant is that constant: nothing from outside the picture came in.
    assert np.all(result == (10, 128, 250))


def test_a_picture_of_the_size_of_its_bucket_is_untouched() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 32, 3), np.uint8)
    assert fitted(pixels, (64, 32)) is pixels


@pytest.mark.parametrize("bucket", [(32, 32), (64, 64), (32, 64)])
def test_the_centre_is_kept(bucket: tuple[int, int]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (48, 96, 3), np.uint8)
    result = fitted(pixels, bucket)
    for axis in (0, 1):
        mirrored = fitted(np.ascontiguousarray(np.flip(pixels, axis)), bucket)
        difference = np.abs(np.flip(mirrored, axis).astype(int) - result)
        assert difference.max() <= 1


@pytest.mark.parametrize("size", [(90, 64), (64, 90), (200, 128)])
@pytest.mark.parametrize("bucket", [(32, 32), (64, 64), (128, 128)])
def test_it_is_the_whole_picture_scaled_and_then_cut(
    size: tuple[int, int], bucket: tuple[int, int]
) -> None:
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]]
    smooth = np.stack([rows * 255 / size[0], columns * 255 / size[1], rows * 0 + 99], -1)
    pixels = smooth.astype(np.uint8)
    scale = max(bucket[0] / size[0], bucket[1] / size[1])
    whole = (round(size[0] * scale), round(size[1] * scale))
    filter_ = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    scaled = np.asarray(Image.fromarray(pixels).resize((whole[1], whole[0]), filter_))
    top, left = (whole[0] - bucket[0]) // 2, (whole[1] - bucket[1]) // 2
    expected = scaled[top : top + bucket[0], left : left + bucket[1]].astype(int)
    # The slow way rounds the whole to pixels, half a pixel at most: a step of the ramp.
    step = 255 / (min(size) * scale)
    assert np.abs(fitted(pixels, bucket).astype(int) - expected).max() <= step + 2


def test_a_strip_of_a_thousand_to_one_costs_no_more_than_its_bucket() -> None:
    strip = np.zeros((5, 5000, 3), np.uint8)
    assert fitted(strip, (2048, 512)).shape == (2048, 512, 3)


@pytest.mark.parametrize(
    ("side", "filter_"), [(96, Image.Resampling.LANCZOS), (20, Image.Resampling.BICUBIC)]
)
def test_shrinking_is_lanczos_and_enlarging_bicubic(side: int, filter_: Image.Resampling) -> None:
    noise = np.random.default_rng(2).integers(0, 256, (side, side, 3), np.uint8)
    expected = np.asarray(Image.fromarray(noise).resize((32, 32), filter_))
    np.testing.assert_array_equal(fitted(noise, (32, 32)), expected)
