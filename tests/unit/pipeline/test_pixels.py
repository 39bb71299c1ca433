from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch

from sanakit.errors import ConfigError, DataError, NumericsError
from sanakit.files import replacing, write_atomically
from sanakit.pipeline.pixels import cut_to, from_pixels, to_pil, to_pixels


def test_every_value_of_a_pixel_comes_back() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    image = from_pixels(pixels)
    assert image.shape == (1, 3, 16, 16)
    assert (image.min(), image.max()) == (-1, 1)
    assert np.array_equal(to_pixels(image), pixels)


def test_channels_rows_and_columns_keep_their_places() -> None:
    image = torch.full((2, 3, 4, 5), -1.0)
    image[1, 2, 3, 4] = 1
    pixels = to_pixels(image)
    assert pixels.shape == (2, 4, 5, 3)
    assert np.argwhere(pixels == 255).tolist() == [[1, 3, 4, 2]]
    assert np.array_equal(to_pixels(from_pixels(pixels)), pixels)


def test_halves_go_to_even_and_overshoot_is_clamped() -> None:
    # 2k / 255 - 1 is pixel value k; k / 2 for odd k is a half, exactly so only for some k.
    image = torch.tensor([0.0, -7.0, 7.0]).view(1, 3, 1, 1)
    assert to_pixels(image).tolist() == [[[[128, 0, 255]]]]
    halves = torch.arange(0.5, 255, dtype=torch.float64)
    image = (halves / 255 * 2 - 1).float().view(1, 1, 1, -1).expand(1, 3, 1, -1)
    scaled = (image[0, 0, 0] / 2 + 0.5) * 255
    exact = scaled == halves.float()
    assert exact.sum() > 50
    assert (torch.from_numpy(to_pixels(image))[0, 0, exact, 0] % 2 == 0).all()


def test_pixels_are_those_of_the_reference(rng: torch.Generator) -> None:
    from diffusers.image_processor import VaeImageProcessor

    image = torch.randn(2, 3, 32, 32, generator=rng)
    theirs = VaeImageProcessor().postprocess(image, output_type="pil")
    ours = to_pil(to_pixels(image))
    assert all(np.array_equal(np.array(a), np.array(b)) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_value_that_is_not_finite_is_never_a_pixel(value: float) -> None:
    image = torch.zeros(1, 3, 2, 2)
    image[0, 1, 0, 0] = value
    with pytest.raises(NumericsError, match="decode: 1 of 12 values"):
        to_pixels(image)


def test_half_precision_is_rounded_as_single(rng: torch.Generator) -> None:
    image = torch.rand(1, 3, 64, 64, generator=rng).bfloat16()
    assert np.array_equal(to_pixels(image), to_pixels(image.float()))


@pytest.mark.parametrize("pixels", [np.zeros((1, 2, 2, 4), np.uint8), np.zeros((1, 2, 2, 3))])
def test_what_are_no_pixels_is_refused(pixels: np.ndarray) -> None:
    for convert in (from_pixels, to_pil):
        with pytest.raises(ConfigError, match="are not uint8 b H W 3"):
            convert(pixels)


def test_a_file_is_replaced_whole_and_obeys_the_umask(tmp_path: Path) -> None:
    target = tmp_path / ("x" * 250 + ".png")
    write_atomically(target, b"old")
    write_atomically(target, b"new")
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("x"), OSError(28, "full")])
def test_a_write_that_is_cut_short_leaves_the_old_file_alone(
    tmp_path: Path, error: BaseException
) -> None:
    target = tmp_path / "a.png"
    target.write_bytes(b"old")

    def write_half() -> None:
        with replacing(target) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(DataError if isinstance(error, OSError) else type(error)):
        write_half()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_nothing_is_named_before_it_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.png"
    seen = []
    monkeypatch.setattr(os, "fsync", lambda _: seen.append(target.exists()))
    write_atomically(target, b"x")
    assert seen[:1] == [False]


def test_a_folder_that_is_missing_or_in_the_way_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist\n.*mkdir -p"):
        write_atomically(tmp_path / "no" / "a.png", b"x")
    with pytest.raises(DataError, match="is a folder"):
        write_atomically(tmp_path, b"x")


@pytest.mark.parametrize(
    ("have", "want"), [((704, 1472), (480, 1000)), ((704, 1344), (403, 768)), ((49, 7), (98, 14))]
)
def test_no_rounding_cuts_next_to_nothing_out_of_a_picture(
    have: tuple[int, int], want: tuple[int, int]
) -> None:
    assert cut_to(torch.rand(1, 3, *have), *want).shape == (1, 3, *want)
