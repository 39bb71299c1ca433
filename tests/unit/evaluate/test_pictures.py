"""The real pictures that figures are of: squares of any source, the same ones each time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sanakit.errors import DataError
from sanakit.evaluate.pictures import pictures_to_restore


def test_any_folder_of_pictures_gives_squares_and_the_same_sample(tmp_path: Path) -> None:
    for number in range(5):
        picture = np.full((40, 60, 3), 50 * number, dtype=np.uint8)
        picture[:, :10] = picture[:, 50:] = 255  # cut off: the middle square is plain
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    found = pictures_to_restore(tmp_path, size=32, count=3)
    pixels = found[:]
    assert pixels.shape == (3, 32, 32, 3)
    assert [int(each[16, 16, 0]) for each in pixels] == [50 * int(name) for name in found.labels]
    assert found.labels == pictures_to_restore(tmp_path, size=32, count=3).labels
    assert pictures_to_restore(tmp_path)[0:1].shape == (1, 256, 256, 3)
    (tmp_path / f"{found.labels[0]}.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=f"{found.labels[0]}: "):
        found[:1]
