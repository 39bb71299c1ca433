"""Pictures and masks of every kind that callers have at hand become the same tensors."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sanakit.errors import ConfigError, DataError
from sanakit.images.files import read_image
from sanakit.pipeline.input_images import as_image, as_mask
from sanakit.pipeline.pixels import to_pixels
from zoo import animals

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
UNIT = torch.from_numpy(PIXELS).permute(2, 0, 1).float() / 255


def written(folder: Path) -> Path:
    path = folder / "picture.png"
    Image.fromarray(PIXELS).save(path)
    return path


KINDS = {
    "PIL": lambda folder: Image.fromarray(PIXELS),
    "path": written,
    "text": lambda folder: str(written(folder)),
    "uint8": lambda folder: PIXELS,
    "float array": lambda folder: PIXELS.astype(np.float32) / 255,
    "double array": lambda folder: PIXELS / 255,
    "batch of arrays": lambda folder: PIXELS[None],
    "tensor": lambda folder: UNIT,
    "batch of tensors": lambda folder: UNIT[None],
    "tensor from -1": lambda folder: UNIT * 2 - 1,
    "uint8 tensor": lambda folder: torch.from_numpy(PIXELS).permute(2, 0, 1),
    "list": lambda folder: [Image.fromarray(PIXELS)],
    "opaque RGBA": lambda folder: Image.fromarray(PIXELS).convert("RGBA"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_of_any_kind_is_the_same(kind: str, tmp_path: Path) -> None:
    image = as_image(KINDS[kind](tmp_path))
    assert image.dtype == torch.float32
    np.testing.assert_array_equal(to_pixels(image), PIXELS[None])


def test_several_pictures_are_rows() -> None:
    both = as_image([Image.fromarray(PIXELS), PIXELS[::-1]])
    np.testing.assert_array_equal(to_pixels(both), np.stack([PIXELS, PIXELS[::-1]]))


def test_pictures_are_upright_and_over_white(tmp_path: Path) -> None:
    turned = Image.fromarray(PIXELS)
    exif = turned.getexif()
    exif[0x0112] = 3
    file = io.BytesIO()
    turned.save(file, "png", exif=exif)
    (tmp_path / "turned.png").write_bytes(file.getvalue())
    for given in (Image.open(file), tmp_path / "turned.png"):
        np.testing.assert_array_equal(to_pixels(as_image(given))[0], PIXELS[::-1, ::-1])
    clear = np.dstack([PIXELS, np.zeros((6, 9), np.uint8)])
    assert (as_image(Image.fromarray(clear, "RGBA")) == 1).all()


@pytest.mark.parametrize("turn", [1, 3, 6])
def test_a_picture_that_was_read_is_not_turned_again(turn: int, tmp_path: Path) -> None:
    stored = Image.fromarray(PIXELS)
    exif = stored.getexif()
    exif[0x0112] = turn
    stored.save(tmp_path / "turned.png", exif=exif)
    read = read_image(tmp_path / "turned.png")
    np.testing.assert_array_equal(to_pixels(as_image(read))[0], np.asarray(read))
    assert as_mask(read, read.size[::-1]).shape[-2:] == read.size[::-1]


NO_PICTURES = {
    "nothing": [],
    "a number": 7,
    "bytes": b"abc",
    "names": np.array([["a"]]),
    "complex": torch.zeros(3, 4, 4, dtype=torch.complex64),
    "two channels": torch.zeros(2, 4, 4),
    "grey": np.zeros((4, 4), np.uint8),
    "latents": torch.zeros(1, 32, 2, 2),
    "no rows": np.zeros((0, 4, 3), np.uint8),
    "too bright": np.full((4, 4, 3), 200.0),
    "too dark": torch.full((3, 4, 4), -1.5),
    "not finite": torch.full((3, 4, 4), float("nan")),
    "two sizes": [Image.new("RGB", (4, 4)), Image.new("RGB", (4, 5))],
    "a list of lists": [[1, 2]],
}


@pytest.mark.parametrize("kind", NO_PICTURES)
def test_what_is_no_picture_is_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match="image "):
        as_image(NO_PICTURES[kind])  # type: ignore[arg-type]


@pytest.mark.parametrize("animal", animals(), ids=lambda animal: animal.name)
def test_files_of_any_content_are_read_or_refused(animal: object, tmp_path: Path) -> None:
    path = tmp_path / "given"
    path.write_bytes(animal.data)
    if animal.reason:
        with pytest.raises(DataError, match="given: "):
            as_image(path)
    else:
        assert as_image(path).shape[1] == 3


MASK = np.zeros((6, 9), np.uint8)
MASK[2:, :4] = 255
MASKS = {
    "L": lambda: Image.fromarray(MASK),
    "1": lambda: Image.fromarray(MASK).convert("1"),
    "RGB": lambda: Image.fromarray(MASK).convert("RGB"),
    "white on nothing": lambda: Image.merge("LA", [Image.fromarray(MASK)] * 2),
    "white, see-through": lambda: Image.merge(
        "LA", [Image.new("L", (9, 6), 255), Image.fromarray(MASK)]
    ),
    "uint8": lambda: MASK,
    "bool": lambda: MASK > 0,
    "float": lambda: MASK / 255,
    "array H W 3": lambda: np.dstack([MASK] * 3),
    "array H W 1": lambda: MASK[..., None],
    "tensor": lambda: torch.from_numpy(MASK) / 255,
    "tensor 1 H W": lambda: torch.from_numpy(MASK)[None] / 255,
    "bool tensor": lambda: torch.from_numpy(MASK > 0)[None, None],
    "just half": lambda: MASK / 255 * 0.5,
}


@pytest.mark.parametrize("kind", MASKS)
def test_a_mask_of_any_kind_is_the_same(kind: str, tmp_path: Path) -> None:
    given = [MASKS[kind]()]
    if isinstance(given[0], Image.Image):
        given[0].save(tmp_path / "mask.png")
        given.append(tmp_path / "mask.png")
    for one in given:
        mask = as_mask(one, (6, 9))
        assert mask.shape == (1, 1, 6, 9)
        np.testing.assert_array_equal(mask[0, 0].numpy(), MASK / 255)


def test_a_mask_of_the_same_proportions_is_scaled_with_a_word() -> None:
    with pytest.warns(UserWarning, match="mask_image is 9 x 6"):
        mask = as_mask(MASK, (12, 18))
    np.testing.assert_array_equal(mask[0, 0, ::2, ::2].numpy(), MASK / 255)


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(ConfigError, match="mask_image is 9 x 6, the picture 10 x 9"):
        as_mask(MASK, (9, 10))
    with pytest.raises(ConfigError, match="mask_image has the shape"):
        as_mask(torch.zeros(1, 3, 6, 9), (6, 9))
