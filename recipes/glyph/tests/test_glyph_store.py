"""The store of pictures: exact, in any order, from any process."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from recipes.glyph.data.store import (
    INDEX,
    PACK,
    SPANS,
    PictureStore,
    decode,
    encode,
    write_index,
    write_pack,
)

from sanakit.errors import DataError

COUNTS = (3, 0, 4, 1)


@pytest.fixture
def rgba() -> np.ndarray:
    """Noise of every alpha: nothing a compressor could guess."""
    return np.random.default_rng(0).integers(0, 256, (sum(COUNTS), 12, 12, 4), dtype=np.uint8)


@pytest.fixture
def store(tmp_path: Path, rgba: np.ndarray) -> PictureStore:
    packs, start = [], 0
    for number, count in enumerate(COUNTS):
        name = f"row-{number}"
        packs.append((name, write_pack(tmp_path, name, rgba[start : start + count])))
        start += count
    assert [count for _, count in packs] == list(COUNTS)
    write_index(tmp_path, 12, packs)
    return PictureStore.open(tmp_path)


def same(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for the colour of what is invisible."""
    np.testing.assert_array_equal(found[..., 3], expected[..., 3])
    visible = expected[..., 3] > 0
    np.testing.assert_array_equal(found[visible], expected[visible])


def test_what_is_compressed_comes_back(rgba: np.ndarray) -> None:
    for picture in rgba:
        same(decode(encode(picture)), picture)
    flat = np.zeros((64, 64, 4), np.uint8)
    flat[8:40, 8:40] = (200, 10, 10, 255)
    assert len(encode(flat)) < 200


@pytest.mark.parametrize("order", [[0], [7, 0, 3], [2, 3, 6, 7], [5, 5], []])
def test_pictures_come_in_the_order_asked_for(
    store: PictureStore, rgba: np.ndarray, order: list[int]
) -> None:
    assert len(store) == sum(COUNTS)
    found = store.rgba(order)
    assert found.shape == (len(order), 12, 12, 4)
    assert found.dtype == np.uint8
    assert found.flags.writeable
    same(found, rgba[order])
    same(store.rgba(np.array(order, dtype=np.int64)), rgba[order])


def test_a_store_travels_to_another_process(store: PictureStore, rgba: np.ndarray) -> None:
    store.rgba([0])
    same(pickle.loads(pickle.dumps(store)).rgba([4]), rgba[[4]])


@pytest.mark.parametrize("number", [-1, 8])
def test_a_number_out_of_range_is_refused(store: PictureStore, number: int) -> None:
    with pytest.raises(DataError, match=f"picture {number} of 8 does not exist"):
        store.rgba([0, number])


def test_a_damaged_picture_is_named(store: PictureStore, tmp_path: Path) -> None:
    path = tmp_path / f"row-2{PACK}"
    spans = np.load(tmp_path / f"row-2{SPANS}")
    data = bytearray(path.read_bytes())
    data[spans[1] : spans[2]] = bytes(int(spans[2] - spans[1]))
    path.write_bytes(data)
    fresh = PictureStore.open(tmp_path)
    fresh.rgba([3])
    with pytest.raises(DataError, match=r"row-2\.webps: picture 1 is damaged"):
        fresh.rgba([4])


def test_a_store_that_is_not_whole_is_not_opened(store: PictureStore, tmp_path: Path) -> None:
    (tmp_path / f"row-3{PACK}").unlink()
    with pytest.raises(DataError, match=r"row-3\.webps is missing"):
        PictureStore.open(tmp_path)
    index = json.loads((tmp_path / INDEX).read_text())
    (tmp_path / INDEX).write_text(json.dumps({**index, "format": 2}))
    with pytest.raises(DataError, match="format 2, not 1"):
        PictureStore.open(tmp_path)
    (tmp_path / INDEX).write_text("{}")
    with pytest.raises(DataError, match="is damaged"):
        PictureStore.open(tmp_path)
    (tmp_path / INDEX).unlink()
    with pytest.raises(DataError, match=r"index\.json is missing"):
        PictureStore.open(tmp_path)
