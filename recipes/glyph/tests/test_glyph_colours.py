"""Colour words of pixels and pictures."""

from __future__ import annotations

import numpy as np
import pytest
from recipes.glyph.data.colours import (
    UNNAMED,
    WORDS,
    colour_shares,
    dominant_colour,
    is_pale,
    name_pixels,
)
from recipes.glyph.data.shades import SHADES


def rgb(text: str) -> np.ndarray:
    return np.array([int(text[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.uint8)


def picture(*parts: tuple[str, int], alpha: int = 255) -> np.ndarray:
    """Rows of plain colours, each with its number of rows; 10 pixels wide."""
    rows = [np.tile(rgb(colour), (count, 10, 1)) for colour, count in parts]
    pixels = np.concatenate(rows)
    return np.concatenate([pixels, np.full((*pixels.shape[:2], 1), alpha, np.uint8)], axis=-1)


@pytest.mark.parametrize("word", SHADES)
def test_every_shade_we_paint_with_bears_its_own_word(word: str) -> None:
    for shade in SHADES[word]:
        assert WORDS[name_pixels(rgb(shade))] == word


# The CSS keywords are an independent naming of colours.
@pytest.mark.parametrize(
    ("css", "word"),
    [
        ("#ff0000", "red"), ("#ffa500", "orange"), ("#ffff00", "yellow"), ("#008000", "green"),
        ("#0000ff", "blue"), ("#800080", "purple"), ("#ffc0cb", "pink"), ("#ff69b4", "pink"),
        ("#654321", "brown"), ("#8b4513", "brown"), ("#000000", "black"), ("#808080", "gray"),
        ("#ffffff", "white"), ("#228b22", "green"), ("#4169e1", "blue"), ("#ffd700", "yellow"),
        ("#1e90ff", "blue"), ("#663399", "purple"), ("#dc143c", "red"), ("#d3d3d3", "gray"),
    ],
)  # fmt: skip
def test_css_colours_bear_their_everyday_word(css: str, word: str) -> None:
    assert WORDS[name_pixels(rgb(css))] == word


@pytest.mark.parametrize("css", ["#40e0d0", "#f5deb3", "#d2b48c", "#b0c4de"])
def test_turquoise_wheat_tan_and_steel_have_no_basic_word(css: str) -> None:
    assert name_pixels(rgb(css)) == UNNAMED == len(WORDS)


def test_shares_add_up_to_one_and_count_opaque_pixels_only() -> None:
    both = np.concatenate([picture(("#ff0000", 3)), picture(("#0000ff", 5), alpha=60)])
    shares = colour_shares(both)
    assert shares.sum() == pytest.approx(1)
    assert shares[WORDS.index("red")] == 1


def test_an_empty_picture_has_no_colour() -> None:
    empty = picture(("#ff0000", 4), alpha=0)
    assert colour_shares(empty).sum() == 0
    assert dominant_colour(empty) is None


def test_a_dark_outline_and_a_highlight_do_not_hide_the_colour() -> None:
    assert dominant_colour(picture(("#1f66d6", 14), ("#000000", 3), ("#ffffff", 3))) == "blue"


def test_a_second_hue_of_half_the_size_leaves_a_picture_without_a_word() -> None:
    assert dominant_colour(picture(("#1f66d6", 13), ("#e0242d", 7))) is None
    assert dominant_colour(picture(("#1f66d6", 14), ("#e0242d", 6))) == "blue"


def test_a_shadow_in_a_neighbouring_hue_is_no_rival() -> None:
    assert dominant_colour(picture(("#f9cf1c", 11), ("#f58a1f", 9))) == "yellow"
    assert dominant_colour(picture(("#e0242d", 11), ("#f472a8", 9))) == "red"


def test_a_colour_of_less_than_its_clear_part_is_not_named() -> None:
    assert dominant_colour(picture(("#1f66d6", 8), ("#000000", 12))) is None
    assert dominant_colour(picture(("#1f66d6", 9), ("#000000", 11))) == "blue"


def test_gray_has_to_fill_more_of_a_picture_than_a_hue() -> None:
    assert dominant_colour(picture(("#808080", 14), ("#ffffff", 6))) is None
    assert dominant_colour(picture(("#808080", 17), ("#ffffff", 3))) == "gray"


def test_only_pictures_that_would_vanish_on_white_are_pale() -> None:
    assert is_pale(picture(("#fafafa", 19), ("#000000", 1)))
    assert not is_pale(picture(("#fafafa", 15), ("#000000", 5)))
    assert not is_pale(picture(("#f9cf1c", 20)))
    assert is_pale(picture(("#000000", 20), alpha=20))
