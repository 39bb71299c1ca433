"""Charts: what is drawn is where the numbers say, and what cannot be drawn is refused."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from sanakit.charts import (
    TALL,
    WIDE,
    Mark,
    Point,
    bars,
    chart,
    histograms,
    lines,
    save,
    sheet,
    svg,
    wrapped,
)
from sanakit.errors import ConfigError


def test_each_distribution_stands_where_its_samples_are_as_shares_of_its_own() -> None:
    """Three in one place stand as tall as three hundred in another."""
    axes = histograms({"few": [1.0] * 3, "many": [9.0] * 300}, title="t", axis="x").axes[0]
    for (heights, edges, _), value in zip(
        (stairs.get_data() for stairs in axes.patches[::2]), (1.0, 9.0), strict=True
    ):
        (full,) = np.nonzero(heights)[0]
        assert heights[full] == 1
        assert edges[full] <= value <= edges[full + 1]
    shown = [text.get_text() for text in axes.get_legend().get_texts()]
    assert shown == ["few (3)", "many (300)"]


@pytest.mark.parametrize("samples", [[], [1.0, np.nan], [np.inf]])
def test_what_is_no_number_is_refused(samples: list[float]) -> None:
    with pytest.raises(ConfigError, match="bad"):
        histograms({"bad": samples}, title="t", axis="x")


@pytest.mark.parametrize("value", [0.0, 5.0, -3e-9, 1e12])
def test_one_value_alone_and_marks_beyond_it_are_drawn(value: float, tmp_path: Path) -> None:
    figure = histograms(
        {"a": [value]}, title="$5", axis="x", marks=[Mark(at=value * 2, label="twice")]
    )
    save(figure, tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as image:
        assert image.size == (WIDE, TALL)


def test_a_line_goes_through_its_values_and_whiskers_to_the_ends_of_intervals() -> None:
    points = [Point(at=50, value=4.0), Point(at=100, value=2.0, low=1.5, high=3.5)]
    axes = lines({"a": points}, title="t", across="n", up="FD").axes[0]
    line, _, (whiskers,) = axes.containers[0]
    assert line.get_xydata().tolist() == [[50, 4], [100, 2]]
    assert [each[:, 1].tolist() for each in whiskers.get_segments()] == [[4, 4], [1.5, 3.5]]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["50", "100"]
    with pytest.raises(ConfigError, match="no points"):
        lines({"a": []}, title="t", across="n", up="FD")


def test_the_same_chart_is_the_same_text() -> None:
    def drawn() -> str:
        figure, axes = chart(title="a < b")
        axes.plot([1, 2, 3])
        return svg(figure, "x")

    assert drawn() == drawn()
    assert drawn().startswith("<svg")


def test_a_sheet_shows_each_picture_in_its_row_and_column(tmp_path: Path) -> None:
    colors = np.array([[250, 0, 0], [0, 250, 0], [0, 0, 250]], dtype=np.uint8)
    pixels = np.broadcast_to(colors[:, None, None], (3, 10, 10, 3)).copy()
    image = sheet(
        [("first", pixels), ("second", pixels[::-1].copy())],
        {1: ["a caption that is far too long for one picture of that size", "b\n", "c"]},
        title="t",
        side=60,
    )
    found = np.asarray(image)
    for row, order in ((40 + 16 + 30, [0, 1, 2]), (40 + 82 + 16 + 30, [2, 1, 0])):
        for column, which in enumerate(order):
            assert found[row, 12 + column * 72 + 30].tolist() == colors[which].tolist()
    save(image, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as again:
        assert again.size == image.size
    with pytest.raises(ConfigError, match="no pictures"):
        sheet([], title="t")


def test_long_labels_are_wrapped_and_what_does_not_fit_is_cut() -> None:
    found = wrapped("a thin line icon of a person playing water polo in the sea" * 3, 20)
    assert len(found) == 3
    assert found[-1].endswith("...")
    assert max(map(len, found)) <= 20
    assert wrapped("a small\nred key", 20) == ["a small red key"]
    assert wrapped("", 20) == []


def test_bars_are_as_long_as_what_they_stand_for_and_say_which_they_are() -> None:
    rows = [("<a>", 10), ("b & c $x$", 5), ("d", 20)]
    for upright in (False, True):
        figure = bars(rows, upright=upright)
        patches = figure.axes[0].patches
        assert [p.get_height() if upright else p.get_width() for p in patches] == [10, 5, 20]
        element = ElementTree.fromstring(svg(figure, '<x "y">'))
        assert {"<a>", "b & c $x$", "d", "20"} <= {node.text for node in element.iter()}
        assert element.attrib["aria-label"] == '<x "y">'
    assert not bars([]).axes[0].patches
