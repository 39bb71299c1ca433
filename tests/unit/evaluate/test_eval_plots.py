"""Plots: what is drawn is where the numbers say, and what cannot be drawn is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sanakit.errors import ConfigError
from sanakit.evaluate import plots
from sanakit.evaluate.plots import TALL, WIDE, Mark, Point, histograms, lines, save, sheet


def coloured(image: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    """Which pixels below the legend are of a line's colour, ``h w``."""
    found = (np.asarray(image) == colour).all(axis=2)
    found[:60] = False
    return found


def test_a_histogram_stands_where_its_samples_are() -> None:
    image = histograms({"low": [1.0] * 10, "high": [9.0] * 30}, title="t", axis="dB")
    assert image.size == (WIDE, TALL)
    # Above the floor, which all outlines share.
    tall = [np.nonzero(coloured(image, c)[:300].any(axis=0))[0] for c in plots._COLOURS[:2]]
    assert 64 < tall[0].mean() < WIDE / 3
    assert 2 * WIDE / 3 < tall[1].mean() < WIDE


def test_each_distribution_is_of_its_own_samples() -> None:
    """Three in one place stand as tall as three hundred in one place: shares, not counts."""
    image = histograms({"few": [1.0] * 3, "many": [9.0] * 300}, title="t", axis="x")
    tops = [np.nonzero(coloured(image, c).any(axis=1))[0][0] for c in plots._COLOURS[:2]]
    assert tops[0] == tops[1] < TALL / 2


@pytest.mark.parametrize("samples", [[], [1.0, np.nan], [np.inf]])
def test_what_is_no_number_is_refused(samples: list[float]) -> None:
    with pytest.raises(ConfigError, match="bad"):
        histograms({"bad": samples}, title="t", axis="x")


def test_one_value_alone_and_marks_beyond_it_are_drawn() -> None:
    for value in (0.0, 5.0, -3e-9, 1e12):
        mark = Mark(at=value * 2, label="twice")
        histograms({"a": [value]}, title="t", axis="x", marks=[mark])


def test_a_line_falls_where_its_values_fall() -> None:
    points = [Point(at=50, value=4.0), Point(at=100, value=2.0, low=1.5, high=2.5)]
    image = lines({"a": points}, title="t", across="n", up="FD")
    drawn = coloured(image, plots._COLOURS[0])
    columns = np.nonzero(drawn.any(axis=0))[0]
    left, right = (np.nonzero(drawn[:, x])[0] for x in (columns[6], columns[-7]))
    assert left.mean() < right.mean()  # upwards is smaller
    with pytest.raises(ConfigError, match="no points"):
        lines({"a": []}, title="t", across="n", up="FD")


def test_a_sheet_shows_each_picture_in_its_row_and_column(tmp_path: Path) -> None:
    colours = np.array([[250, 0, 0], [0, 250, 0], [0, 0, 250]], dtype=np.uint8)
    pixels = np.broadcast_to(colours[:, None, None], (3, 10, 10, 3)).copy()
    image = sheet(
        [("first", pixels), ("second", pixels[::-1].copy())],
        {1: ["a caption that is far too long for one picture of that size", "b\n", "c"]},
        title="t",
        side=60,
    )
    found = np.asarray(image)
    for row, order in ((40 + 16 + 30, [0, 1, 2]), (40 + 82 + 16 + 30, [2, 1, 0])):
        for column, which in enumerate(order):
            assert found[row, 12 + column * 72 + 30].tolist() == colours[which].tolist()
    save(image, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as again:
        assert again.size == image.size
    with pytest.raises(ConfigError, match="no pictures"):
        sheet([], title="t")


def test_long_labels_are_wrapped_and_what_does_not_fit_is_cut() -> None:
    wide = 100
    found = plots._wrapped("a thin line icon of a person playing water polo in the sea" * 3, wide)
    assert len(found) == 3
    assert found[-1].endswith("...")
    assert all(plots._font(11).getlength(line) <= wide for line in found)
    assert " ".join(plots._wrapped("a small\nred key", wide)) == "a small red key"
    assert plots._wrapped("", wide) == [""]
    assert plots._wrapped("x" * 80, wide)[0].endswith("...")
