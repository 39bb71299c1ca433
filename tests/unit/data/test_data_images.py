"""Bytes become pictures or a reason, and pictures the size of their bucket."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

import zoo
from sanakit.data.resize_and_crop import (
    bucket_table,
    fit,
    fitted,
    nearest_bucket,
    usual_multiple,
)
from sanakit.errors import ConfigError, DataError
from sanakit.images import color, file_format
from sanakit.images.decode import FORMATS, REASONS, BadPicture, DecodeLimits, decode
from sanakit.pipeline.aspect_ratios import TABLES

ANIMALS = {animal.name: animal for animal in zoo.animals()}


def fate(data: bytes, limits: DecodeLimits | None = None) -> str:
    """The reason of the refusal, "" where there is none."""
    try:
        decode(data, limits=limits or DecodeLimits())
    except BadPicture as error:
        return error.reason
    return ""


@pytest.mark.parametrize("name", ANIMALS)
def test_each_file_of_the_zoo_is_shown_right_or_refused_for_the_right_reason(name: str) -> None:
    animal = ANIMALS[name]
    if animal.reason:
        with pytest.raises(BadPicture) as caught:
            decode(animal.data)
        assert caught.value.reason == animal.reason
        assert caught.value.reason in REASONS
        assert isinstance(caught.value, DataError)
        assert len(caught.value.detail) < 250
        return
    shown = decode(animal.data)
    assert (shown.height, shown.width) == animal.size
    assert shown.pixels.shape == (*animal.size, 3)
    assert shown.pixels.dtype == np.uint8
    assert shown.pixels.flags.writeable
    assert shown.format in FORMATS
    assert zoo.shows(shown.pixels, animal.quarters)


def test_lossless_files_keep_every_pixel() -> None:
    expected = np.asarray(zoo.picture())
    for name in (
        "plain-PNG.png",
        "plain-BMP.bmp",
        "plain-TIFF.tiff",
        "lossless.webp",
        "16-bit.png",
    ):
        np.testing.assert_array_equal(decode(ANIMALS[name].data).pixels, expected)
    for turn in range(1, 9):
        turned = decode(ANIMALS[f"rotated-{turn}-PNG.png"].data).pixels
        np.testing.assert_array_equal(turned, expected)


def test_16_bit_grey_is_scaled_and_not_cut_off() -> None:
    values = np.linspace(0, 65535, 32 * 32).round().astype(np.uint16).reshape(32, 32)
    for kind in ("PNG", "TIFF"):
        pixels = decode(zoo.saved(Image.fromarray(values), kind)).pixels
        np.testing.assert_array_equal(pixels[..., 0], np.rint(values / 257).astype(np.uint8))


def test_a_value_that_is_no_number_is_damage_whatever_numpy_was_told() -> None:
    with np.errstate(all="ignore"):
        assert fate(ANIMALS["not-a-number.tif"].data) == "damaged"


def test_half_transparent_is_half_white() -> None:
    image = Image.new("RGBA", (8, 8), (0, 100, 200, 128))
    pixels = decode(zoo.saved(image, "PNG")).pixels
    expected = [255 * 127 / 255, (100 * 128 + 255 * 127) / 255, (200 * 128 + 255 * 127) / 255]
    assert np.abs(pixels[0, 0] - np.array(expected)).max() <= 1


def test_the_first_frame_is_taken_where_that_is_wanted() -> None:
    limits = DecodeLimits(first_frame=True)
    animated = [animal for animal in ANIMALS.values() if animal.reason == "animated"]
    assert len(animated) >= 4
    for animal in animated:
        shown = decode(animal.data, limits=limits)
        assert shown.pixels.shape == (*zoo.SIZE, 3)
        assert zoo.shows(shown.pixels, zoo.COLOURS)


def test_limits_are_limits_of_what_is_shown() -> None:
    data = ANIMALS["plain-PNG.png"].data
    assert fate(data, DecodeLimits(max_pixels=32 * 48)) == ""
    assert fate(data, DecodeLimits(max_pixels=32 * 48 - 1)) == "too many pixels"
    assert fate(data, DecodeLimits(min_side=32)) == ""
    assert fate(data, DecodeLimits(min_side=33)) == "too small"
    assert fate(ANIMALS["1x10000.png"].data, DecodeLimits(min_side=2)) == "too small"
    for bad in ({"max_pixels": 0}, {"min_side": 0}):
        with pytest.raises(ConfigError, match="is not 1 or more"):
            DecodeLimits(**bad)


@pytest.mark.parametrize("turn", [1, 6])
@pytest.mark.parametrize("cover", [(40, 60), (60, 96), (130, 30), (63, 97), (7, 1000), (512, 768)])
def test_a_smaller_decode_covers_what_is_asked_for(cover: tuple[int, int], turn: int) -> None:
    image = zoo.picture(size=(768, 512) if turn == 6 else (512, 768))
    exif = Image.Exif()
    exif[0x0112] = turn
    data = zoo.saved(image, "JPEG", quality=95, exif=exif)
    whole, part = decode(data), decode(data, cover=cover)
    assert (part.height, part.width) == (whole.height, whole.width) == (512, 768)
    height, width, _ = part.pixels.shape
    assert (height, width) in [(512 // scale, 768 // scale) for scale in (1, 2, 4, 8)]
    fits = cover[0] <= 512 and cover[1] <= 768
    assert (height >= cover[0] and width >= cover[1]) or not fits
    if fits and (height, width) != (64, 96):  # and not more than needed
        assert height // 2 < cover[0] or width // 2 < cover[1]
    small = np.asarray(Image.fromarray(whole.pixels).resize((width, height), Image.Resampling.BOX))
    assert np.abs(small.astype(int) - part.pixels).mean() < 2


@cache
def noisy_jpeg(progressive: bool) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    return zoo.saved(Image.fromarray(noise), "JPEG", quality=90, progressive=progressive)


@settings(max_examples=60)
@given(st.booleans(), st.floats(0.001, 1))
def test_a_smaller_decode_finds_every_end_that_is_missing(progressive: bool, share: float) -> None:
    data = noisy_jpeg(progressive)
    part = data[: int(len(data) * share)]
    if len(part) == len(data):
        return
    with pytest.raises(BadPicture):
        decode(part, cover=(32, 32))
    with pytest.raises(BadPicture):
        decode(part)


@settings(max_examples=400)
@given(st.data())
def test_damage_gives_a_picture_or_a_reason_and_nothing_else(data: st.DataObject) -> None:
    names = sorted(name for name, animal in ANIMALS.items() if len(animal.data) < 20_000)
    damaged = bytearray(ANIMALS[data.draw(st.sampled_from(names))].data)
    for _ in range(data.draw(st.integers(1, 5))):
        if damaged:
            at = data.draw(st.integers(0, min(len(damaged), 400) - 1))
            damaged[at] = data.draw(st.integers(0, 255))
    limits = DecodeLimits(max_pixels=1 << 22)
    try:
        shown, reason = decode(bytes(damaged), limits=limits), ""
    except BadPicture as error:
        shown, reason = None, error.reason
    assert reason in REASONS if shown is None else shown.pixels.shape[2] == 3
    assert shown is None or shown.pixels.size <= 3 * limits.max_pixels


def test_claims_and_bombs_cost_no_memory(tmp_path: Path) -> None:
    zoo.fill(tmp_path)
    names = [name for name in ANIMALS if name.startswith(("huge", "bomb", "1x"))]
    assert len(names) >= 12
    code = """
import json, resource, sys
from pathlib import Path
from sanakit.images.decode import BadPicture, decode
def use(path):
    try:
        decode(Path(path).read_bytes())
    except BadPicture:
        pass
small, *paths = json.loads(sys.argv[1])
use(small)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in paths:
    use(path)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 16 * 1024, (path, grown)
"""
    paths = [str(tmp_path / name) for name in ("plain-WEBP.webp", *names)]
    paths[0] = str(tmp_path / "lossy.webp")
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(paths)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_header_says_the_size_that_is_decoded() -> None:
    sizes = {}
    for animal in ANIMALS.values():
        kind, _ = file_format.format_of(animal.data)
        if kind in ("webp", "avif") and not animal.reason and animal.size == zoo.SIZE:
            sizes[animal.name] = file_format.claimed_size(animal.data, kind)
    assert len(sizes) >= 3
    assert set(sizes.values()) <= {zoo.SIZE, zoo.SIZE[::-1]}


def test_only_the_decoder_of_its_own_format_sees_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: object, **__: object) -> None:
        raise AssertionError("Pillow guessed")

    monkeypatch.setattr(Image, "open", opened)
    for animal in ANIMALS.values():
        assert fate(animal.data) == animal.reason


def test_a_limit_that_others_set_in_pillow_is_named_as_a_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert fate(ANIMALS["plain-PNG.png"].data) == ""
    assert fate(ANIMALS["plain-TIFF.tiff"].data) == "too many pixels"
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_warnings_of_pillow_are_neither_shown_nor_raised_in_any_thread() -> None:
    odd = [animal for animal in ANIMALS.values() if len(animal.data) < 20_000]
    before = list(warnings.filters)
    failed: list[BaseException] = []

    def work() -> None:
        try:
            for animal in odd:
                assert fate(animal.data) == animal.reason
        except BaseException as error:
            failed.append(error)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed
        with pytest.raises(UserWarning):
            warnings.warn("the filters are back", stacklevel=1)
    assert list(warnings.filters) == before


def test_a_profile_that_is_srgb_by_another_name_changes_no_pixel() -> None:
    expected = np.asarray(zoo.picture())
    for name in ("srgb.png", "no-profile.png", "bomb-profile.png"):
        np.testing.assert_array_equal(decode(ANIMALS[name].data).pixels, expected)
    srgb = Image.open(io.BytesIO(ANIMALS["srgb.png"].data)).info["icc_profile"]
    assert color._transform(srgb, "RGB") is None
    assert color._transform(zoo.crossed_profile(), "RGB") is not None


def test_scans_and_ends_of_a_jpeg_are_its_own_and_not_those_of_a_thumbnail() -> None:
    thumbnail = zoo.saved(zoo.picture(size=(16, 16)), "JPEG", progressive=True)
    exif = b"Exif\0\0" + thumbnail
    image = zoo.saved(zoo.picture(), "JPEG", quality=95)
    data = image[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + image[2:]
    assert file_format.jpeg_scans(image) == file_format.jpeg_scans(data) == 1
    assert file_format.jpeg_has_end(data)
    assert not file_format.jpeg_has_end(data[:-2])
    assert fate(data) == ""
    assert fate(data[:-2] + bytes(50)) == "truncated"
    assert file_format.jpeg_scans(thumbnail) == thumbnail.count(b"\xff\xda") > 3


TABLES_AT_1024 = [(height // 2, width // 2) for height, width in TABLES[64].values()]
SIDES = st.integers(1, 5000)


@pytest.mark.parametrize(
    ("resolution", "kind", "sample_size"),
    [
        (512, "inference", 16),
        (1024, "inference", 32),
        *((2048, kind, 64) for kind in ("training", "inference")),
        *((4096, kind, 128) for kind in ("training", "inference")),
    ],
)
def test_tables_are_the_published_ones(resolution: int, kind: str, sample_size: int) -> None:
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


@pytest.mark.parametrize("kind", ["training", "inference", "square"])
@pytest.mark.parametrize("resolution", [32, 64, 96, 128, 224, 256, 384, 512, 768, 2880])
@pytest.mark.parametrize("multiple", [32, 64, None])
def test_any_resolution_has_buckets_of_a_multiple_by_their_own_ratios(
    resolution: int, kind: str, multiple: int | None
) -> None:
    if multiple is not None and resolution % multiple:
        with pytest.raises(ConfigError, match=f"multiple of {multiple}"):
            bucket_table(resolution, kind, multiple=multiple)
        return
    table = bucket_table(resolution, kind, multiple=multiple)
    step = multiple or usual_multiple(resolution)
    assert len(set(table.values())) == len(table)
    assert (resolution, resolution) in table.values()
    for key, (height, width) in table.items():
        assert height % step == width % step == 0
        assert min(height, width) >= step
        assert height / width == pytest.approx(key, abs=0.02)
    if kind != "square":
        scaled = [(h * resolution / 1024, w * resolution / 1024) for h, w in TABLES_AT_1024]
        for size in table.values():
            off = [max(abs(a - b) for a, b in zip(size, one, strict=True)) for one in scaled]
            # Rounded to the nearest; below the multiple there is nothing to round to.
            assert min(off) <= step / 2 or min(size) == step


def test_sizes_that_nobody_published_suit_patches_of_two_latents() -> None:
    assert [usual_multiple(side) for side in (256, 384, 768)] == [64, 64, 64]
    # Published ones stay, and a small resolution would have a size or two.
    assert [usual_multiple(side) for side in (64, 128, 512, 1024, 4096, 288)] == [32] * 6


def test_square_has_one_bucket() -> None:
    assert bucket_table(128, "square") == {1.0: (128, 128)}
    assert nearest_bucket(100, 9000, bucket_table(128, "square")) == (128, 128)


@pytest.mark.parametrize(("resolution", "near"), [(0, 32), (-32, 32), (500, 512), (33, 32)])
def test_a_resolution_that_fits_no_autoencoder_is_refused_with_the_nearest_that_does(
    resolution: int, near: int
) -> None:
    with pytest.raises(ConfigError, match=str(resolution)) as raised:
        bucket_table(resolution)
    assert raised.value.hint == f"try {near}"
    assert bucket_table(near)


def test_unknown_buckets_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'round'") as raised:
        bucket_table(512, "round")
    assert "square" in raised.value.hint


@given(height=SIDES, width=SIDES, resolution=st.sampled_from([128, 256, 512, 1024]))
def test_the_nearest_bucket_has_the_nearest_key(height: int, width: int, resolution: int) -> None:
    table = bucket_table(resolution)
    chosen = nearest_bucket(height, width, table)
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
