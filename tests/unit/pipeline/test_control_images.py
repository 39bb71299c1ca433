"""Control images out of pictures: what holds of every kind, on pictures whose edges are known."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sanakit import control_image
from sanakit.errors import ConfigError

EDGES = ("canny", "soft-edges", "scribble")


def square(size: int = 96, inner: int = 48) -> NDArray[np.uint8]:
    """A red square on grey."""
    picture = np.full((size, size, 3), 128, np.uint8)
    low = (size - inner) // 2
    picture[low : low + inner, low : low + inner] = (200, 30, 30)
    return picture


def lines(picture: NDArray[np.uint8], kind: Any) -> NDArray[np.uint8]:
    found = np.asarray(control_image(Image.fromarray(picture), kind))
    assert found.shape == picture.shape
    assert (found == found[..., :1]).all()
    return found[..., 0]


@pytest.mark.parametrize("kind", EDGES)
def test_lines_are_white_at_edges_and_nowhere_else(kind: str) -> None:
    found = lines(square(), kind)
    rows = found[48]
    assert {int(rows[22:27].max()), int(rows[69:75].max())} == {255}
    assert rows[44:52].max() < 20  # inside
    assert found[:8].max() < 20  # outside
    assert not lines(np.full((40, 64, 3), 77, np.uint8), kind).any()


@pytest.mark.parametrize("kind", EDGES)
def test_a_turned_picture_has_turned_lines(kind: str) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(picture).resize((96, 72), Image.Resampling.BICUBIC))
    found, turned = lines(smooth, kind), lines(np.ascontiguousarray(np.rot90(smooth)), kind)
    assert (np.rot90(found) == turned).mean() > 0.99


def test_kinds_differ_as_they_say() -> None:
    found = {kind: lines(square(), kind) for kind in EDGES}
    for kind in ("canny", "scribble"):
        assert set(np.unique(found[kind])) == {0, 255}
    assert len(np.unique(found["soft-edges"])) > 8
    drawn = {kind: (found[kind] > 127).mean() for kind in EDGES}
    assert drawn["canny"] < drawn["soft-edges"] < drawn["scribble"] < 0.4


def test_a_ready_control_is_taken_as_it_is() -> None:
    assert (np.asarray(control_image(Image.fromarray(square()), "none")) == square()).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 2)])
@pytest.mark.parametrize("kind", EDGES)
def test_the_smallest_pictures_have_control_images_too(kind: str, size: tuple[int, int]) -> None:
    assert lines(np.full((*size, 3), 9, np.uint8), kind).shape == size


def test_what_is_not_here_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    picture: Any = Image.fromarray(square())
    kind: Any = "depth"
    with pytest.raises(ConfigError, match=r"(?s)no depth network.*kind 'none'"):
        control_image(picture, kind)
    kind = "cany"
    with pytest.raises(ConfigError, match=r"(?s)'cany' is unknown.*'canny'"):
        control_image(picture, kind)
    with pytest.raises(ConfigError, match="2 pictures"):
        control_image(np.stack([square(), square()]), "none")
    monkeypatch.setitem(sys.modules, "skimage.feature", None)
    with pytest.raises(ConfigError, match=r"(?s)not installed.*sanakit\[control\]"):
        control_image(picture, "canny")
