"""Where things are in a picture: connected areas, the background, copies, pieces, bridges."""

from __future__ import annotations

import numpy as np
import pytest
from recipes.glyph.data.backgrounds import BACKGROUNDS
from recipes.glyph.data.layout import cells
from recipes.glyph.data.shades import SHADES
from recipes.glyph.evaluate.composition import colour_word
from recipes.glyph.evaluate.composition_judge import (
    Part,
    copies,
    gaps,
    label,
    likeness,
    oklab,
    parts_of,
    take_apart,
    two_things,
)

SIDE = 128
RED = (200, 30, 40)


def plain(background: str = "white", side: int = SIDE) -> np.ndarray:
    rgb = np.rint(np.array(BACKGROUNDS[background]) * 255)
    return np.broadcast_to(rgb, (side, side, 3)).astype(np.uint8)


def stamp(
    picture: np.ndarray, mask: np.ndarray, left: int, top: int, rgb: tuple[int, ...] = RED
) -> None:
    picture[top : top + mask.shape[0], left : left + mask.shape[1]][mask] = rgb


def blurred(picture: np.ndarray) -> np.ndarray:
    """Edges as soft as an autoencoder's."""
    found = picture.astype(float)
    for axis in (0, 1):
        found = (np.roll(found, 1, axis) + 2 * found + np.roll(found, -1, axis)) / 4
    return np.rint(found).astype(np.uint8)


def disc(side: int) -> np.ndarray:
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    return x**2 + y**2 <= 1


def wedge(side: int) -> np.ndarray:
    y, x = np.mgrid[0 : 1 : side * 1j, 0 : 1 : side * 1j]
    return x <= y


def flood(mask: np.ndarray) -> np.ndarray:
    """The slow definition of connected areas, corners included."""
    found = np.zeros(mask.shape, int)
    for start in zip(*np.nonzero(mask), strict=True):
        if found[start]:
            continue
        number, waiting = found.max() + 1, [start]
        while waiting:
            row, column = waiting.pop()
            inside = 0 <= row < mask.shape[0] and 0 <= column < mask.shape[1]
            if not inside or not mask[row, column] or found[row, column]:
                continue
            found[row, column] = number
            waiting += [(row + a, column + b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
    return found


@pytest.mark.parametrize("share", [0.0, 0.15, 0.4, 0.6, 1.0])
def test_labels_are_those_of_a_flood_fill(share: float) -> None:
    mask = np.random.default_rng(int(share * 10)).random((23, 31)) < share
    pairs = set(zip(label(mask).ravel().tolist(), flood(mask).ravel().tolist(), strict=True))
    # As many numbers as areas, and each number one area.
    assert len(pairs) == len({one for one, _ in pairs}) == len({other for _, other in pairs})
    assert all((one == 0) == (other == 0) for one, other in pairs)


def test_gaps_are_the_least_distance_between_any_two_pixels() -> None:
    rng = np.random.default_rng(0)
    parts = [Part(np.argwhere(disc(9)) + rng.integers(0, 60, 2)) for _ in range(4)]
    found = gaps(parts)
    for one in range(4):
        for other in range(4):
            apart = parts[one].pixels[:, None] - parts[other].pixels
            least = np.sqrt(np.square(apart).sum(axis=2)).min()
            assert found[one, other] == pytest.approx(least, abs=1e-4)


def test_oklab_of_white_black_and_gray() -> None:
    np.testing.assert_allclose(oklab([[1, 1, 1], [0, 0, 0]]), [[1, 0, 0], [0, 0, 0]], atol=1e-4)
    assert abs(oklab([0.5, 0.5, 0.5])[1:]).max() < 1e-4


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_every_background_is_named_through_noise_and_soft_edges(name: str) -> None:
    rng = np.random.default_rng(0)
    picture = plain(name).copy()
    stamp(picture, disc(70), 30, 58, (120, 120, 30))  # it touches the lower border
    noisy = blurred(picture).astype(float) + rng.normal(0, 3, picture.shape)
    seen = take_apart(np.clip(noisy, 0, 255).astype(np.uint8))
    assert seen.background.name == name
    assert len(seen.parts) == 1


def test_a_border_of_two_colours_is_no_plain_background() -> None:
    picture = plain().copy()
    for row in range(0, SIDE, 2):
        picture[row] = 0
    assert take_apart(picture).background.share < 0.6


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("arrangement", ["across", "down", "scattered"])
def test_copies_are_counted_wherever_they_stand(count: int, arrangement: str) -> None:
    for seed in range(4):
        picture = plain("mint").copy()
        for left, top, wide, high in cells(count, arrangement, np.random.default_rng(seed)):  # type: ignore[arg-type]
            side = int(0.9 * min(wide, high) * SIDE)
            stamp(picture, wedge(side), int(left * SIDE) + 1, int(top * SIDE) + 1)
        for shown in (picture, blurred(picture)):
            assert len(copies(take_apart(shown).parts, SIDE)) == count


def in_pieces() -> np.ndarray:
    """A head above a body, apart by more than what is near counts as one."""
    mask = np.zeros((60, 24), bool)
    mask[:16, 4:20] = disc(16)
    mask[23:] = True
    return mask


def test_copies_in_pieces_are_counted_whole() -> None:
    picture = plain().copy()
    for number in range(3):
        stamp(picture, in_pieces(), 8 + 34 * number, 30)
    assert len(take_apart(picture).parts) == 6
    assert len(copies(take_apart(picture).parts, SIDE)) == 3
    alone = plain().copy()
    stamp(alone, in_pieces(), 40, 30)
    assert len(copies(take_apart(alone).parts, SIDE)) == 1


@pytest.mark.parametrize("count", [2, 3])
def test_copies_that_touch_are_parted(count: int) -> None:
    picture = plain().copy()
    for number in range(count):
        stamp(picture, wedge(36), 6 + 38 * number, 40)
    picture[74:76, 20 : 20 + 38 * (count - 1)] = RED  # a bridge along their feet
    assert len(take_apart(picture).parts) == 1
    assert len(copies(take_apart(picture).parts, SIDE)) == count


def test_two_that_touch_beside_one_alone_are_three() -> None:
    picture = plain().copy()
    for left in (4, 42, 84):
        stamp(picture, wedge(36), left, 40)
    picture[74:76, 20:60] = RED
    assert len(take_apart(picture).parts) == 2
    assert len(copies(take_apart(picture).parts, SIDE)) == 3


def test_a_pair_of_lenses_is_one_thing() -> None:
    picture = plain().copy()
    stamp(picture, disc(40), 22, 40)
    stamp(picture, disc(40), 64, 40)
    picture[59:61, 30:90] = RED
    assert len(copies(take_apart(picture).parts, SIDE)) == 1


def test_specks_are_nothing() -> None:
    picture = plain().copy()
    stamp(picture, disc(40), 10, 10)
    stamp(picture, disc(5), 100, 100)
    picture[3, 120] = 0
    assert len(copies(take_apart(picture).parts, SIDE)) == 1
    assert two_things(take_apart(picture).parts) == []


def test_likeness_is_one_of_copies_and_less_of_others() -> None:
    one, other = Part(np.argwhere(wedge(30))), Part(np.argwhere(wedge(30)) + 40)
    assert likeness([one, other]) == pytest.approx(1)
    half = Part(np.argwhere(wedge(15)))
    assert likeness([one, half]) < 0.6
    assert likeness([one, Part(np.argwhere(disc(30)))]) < likeness([one, other])


def test_two_things_in_pieces_are_seen_as_two_in_some_way() -> None:
    picture = plain().copy()
    for row in range(5):  # dashes, farther from each other than from the disc
        picture[20 + 20 * row : 26 + 20 * row, 10:50] = 0
    stamp(picture, disc(44), 58, 40)
    options = two_things(take_apart(picture).parts)
    assert len(options) > 1
    halves = [{part.box[0] < 54 for part in option} for option in options]
    assert {True, False} in halves


def test_two_of_everything_are_the_nearest_joined() -> None:
    mask = np.zeros((SIDE, SIDE), bool)
    for left, top in ((10, 50), (28, 50), (90, 50)):
        mask[top : top + 16, left : left + 16] = True
    boxes = sorted(part.box for part in two_things(parts_of(mask))[0])
    assert boxes == [(10, 50, 44, 66), (90, 50, 106, 66)]


@pytest.mark.parametrize("colour", SHADES)
def test_every_paint_has_its_word_through_soft_edges(colour: str) -> None:
    for shade in SHADES[colour]:
        rgb = tuple(int(shade[at : at + 2], 16) for at in (1, 3, 5))
        for mask in (disc(60), disc(60) ^ np.pad(disc(48), 6)):
            picture = plain().copy()
            stamp(picture, mask, 30, 20, rgb)
            assert colour_word(take_apart(blurred(blurred(picture)))) == colour


def test_a_dark_outline_does_not_hide_a_hue_and_nothing_has_no_word() -> None:
    picture = plain().copy()
    stamp(picture, disc(80), 20, 20, (10, 10, 10))
    stamp(picture, disc(50), 35, 35, (47, 158, 68))
    assert colour_word(take_apart(picture)) == "green"
    assert colour_word(take_apart(plain())) == ""
