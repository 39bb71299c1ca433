"""A picture by its path, which may not be there, or be another one by now."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sanakit.errors import DataError
from sanakit.images.files import digest_of, read_image

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["none.png", ".", "~nobody-of-this-name/a.png", "\0", "a" * 300])
def test_places_that_hold_no_file_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_image(name if name.startswith("~") else str(tmp_path / name))


def test_another_file_under_a_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    Image.fromarray(PIXELS).save(path)
    digest = digest_of(path)
    assert read_image(path, digest=digest).size == (9, 6)
    Image.fromarray(PIXELS[::-1]).save(path)
    with pytest.raises(DataError, match="is not the file that it was"):
        read_image(path, digest=digest)
