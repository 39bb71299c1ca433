from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from sanakit.data.duplicates import (
    _COSINES,
    CELLS,
    Duplicate,
    DuplicateFinder,
    Look,
    distance,
    look_at,
    same_colors,
)
from sanakit.errors import ConfigError
from sanakit.images.decode import decode, decoded_image
from zoo import saved


def scene(seed: int, side: int = 256) -> Image.Image:
    """A picture like no other: smooth shades with a dozen shapes on them."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(40, 216, (5, 5, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)).copy()
    y, x = np.mgrid[:side, :side]
    for _ in range(12):
        cy, cx = rng.integers(0, side, 2)
        inside = (y - cy) ** 2 + (x - cx) ** 2 < rng.integers(side // 16, side // 5) ** 2
        pixels[inside] = rng.integers(20, 200, 3)
    return Image.fromarray(pixels)


def drawing(shape: str, colour: tuple[int, int, int], ground: tuple[int, int, int]) -> Image.Image:
    """A simple symmetric drawing, which has the fewest frequencies."""
    y, x = np.mgrid[:128, :128] - 63.5
    inside = {
        "disc": x**2 + y**2 < 50**2,
        "square": np.maximum(abs(x), abs(y)) < 45,
        "diamond": abs(x) + abs(y) < 55,
    }[shape]
    pixels = np.full((128, 128, 3), ground, dtype=np.uint8)
    pixels[inside] = colour
    return Image.fromarray(pixels)


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    return Image.fromarray(decode(saved(image, "JPEG", quality=quality)).pixels)


def scaled(image: Image.Image, factor: float) -> Image.Image:
    size = (round(image.width * factor), round(image.height * factor))
    return image.resize(size, Image.Resampling.BICUBIC)


EDITS = {
    "half as large": lambda image: scaled(image, 0.5),
    "0.37 as large": lambda image: scaled(image, 0.37),
    "1.7 as large": lambda image: scaled(image, 1.7),
    "JPEG 90": lambda image: as_jpeg(image, 90),
    "JPEG 50": lambda image: as_jpeg(image, 50),
    "half as large, JPEG 70": lambda image: as_jpeg(scaled(image, 0.5), 70),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.92),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.08),
    "more contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.08),
}


def found(images: list[Image.Image], near: int = 4) -> list[tuple[int, int]]:
    """Numbers of the duplicates, and of what they are duplicates of; no two files are equal."""
    finder = DuplicateFinder(near)
    pairs = []
    for number, image in enumerate(images):
        digest = hashlib.sha256(str(number).encode()).hexdigest()
        duplicate = finder.add(str(number), digest, look_at(image))
        if duplicate is not None:
            pairs.append((int(duplicate.id), int(duplicate.of)))
    return pairs


@pytest.mark.parametrize("edit", EDITS)
def test_the_same_picture_saved_again_is_found(edit: str) -> None:
    scenes = [scene(seed) for seed in range(20)]
    again = [EDITS[edit](image) for image in scenes]
    assert found([*scenes, *again]) == [(20 + number, number) for number in range(20)]


@pytest.mark.parametrize("edit", ["half as large", "1.7 as large", "JPEG 50", "darker"])
def test_a_symmetric_drawing_saved_again_is_found(edit: str) -> None:
    drawings = [
        drawing(shape, colour, (255, 255, 255))
        for shape in ("disc", "square", "diamond")
        for colour in ((200, 30, 30), (30, 60, 180))
    ]
    again = [EDITS[edit](image) for image in drawings]
    assert found([*drawings, *again]) == [(6 + number, number) for number in range(6)]


def test_different_pictures_are_not_found() -> None:
    scenes = [scene(seed) for seed in range(150)]
    assert found(scenes, near=8) == []
    hashes = [look_at(image).phash for image in scenes]
    apart = [distance(a, b) for i, a in enumerate(hashes) for b in hashes[:i]]
    assert 24 < np.mean(apart) < 34
    assert min(apart) > 8


def test_drawings_that_differ_in_colour_alone_are_not_found() -> None:
    colours = [(200, 30, 30), (30, 150, 60), (30, 60, 200), (230, 180, 40), (120, 120, 120)]
    drawings = [
        drawing(shape, colour, ground)
        for shape in ("disc", "square", "diamond")
        for colour in colours
        for ground in ((255, 255, 255), (180, 210, 255))
    ]
    assert found(drawings) == []


def test_flat_pictures_are_the_same_only_if_their_colour_is() -> None:
    flat = [Image.new("RGB", (64, 64), (grey, grey, grey)) for grey in range(0, 256, 15)]
    flat += [
        Image.new("RGB", (64, 64), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))
    ]
    assert {look_at(image).phash for image in flat} == {0}
    assert found(flat) == []
    again = [as_jpeg(image.resize((200, 90)), 80) for image in flat]
    assert found([*flat, *again]) == [(len(flat) + number, number) for number in range(len(flat))]


def test_a_smaller_decode_gives_the_same_look() -> None:
    for seed in range(8):
        data = saved(scene(seed, side=768), "JPEG", quality=85)
        whole = look_at(decoded_image(data)[0])
        part = look_at(decoded_image(data, cover=(64, 64))[0])
        assert distance(whole.phash, part.phash) <= 1
        assert np.abs(whole.colors.astype(int) - part.colors).max() <= 2


def test_the_hash_is_the_sign_of_the_cosine_transform_by_its_definition() -> None:
    image = scene(3, side=32)
    grey = np.asarray(image, dtype=np.float64) @ [0.299, 0.587, 0.114]
    x = np.arange(32)

    def coefficient(u: int, v: int) -> float:
        scale = (np.sqrt(0.5) if u == 0 else 1) * (np.sqrt(0.5) if v == 0 else 1) / 16
        waves = np.outer(np.cos((2 * x + 1) * u * np.pi / 64), np.cos((2 * x + 1) * v * np.pi / 64))
        return scale * float((grey * waves).sum())

    order = sorted((u * u + v * v, u, v) for u in range(32) for v in range(32))[1:65]
    values = np.array([coefficient(u, v) for _, u, v in order])
    threshold = max(2.0, 0.05 * np.sqrt((values**2).mean()))
    clear = np.abs(values - threshold) > 0.05
    bits = np.array([int(bit) for bit in f"{look_at(image).phash:064b}"], dtype=bool)
    assert clear.sum() > 55
    np.testing.assert_array_equal(bits[clear], (values > threshold)[clear])
    np.testing.assert_allclose(_COSINES @ _COSINES.T, np.eye(32), atol=1e-6)


def test_one_gain_and_one_shift_of_light_are_forgiven_and_no_more() -> None:
    base = look_at(scene(0)).colors.astype(np.float64)
    others = [base * 0.9, base + 10, base * 1.1 - 10, base[::-1], base[..., ::-1], base + 60]
    tinted, spot = base + np.array([12, 0, -12]), base.copy()
    spot[2, 3] += 18  # one cell: 2 levels as root mean square of all
    stack = np.clip(np.rint([*others, tinted, spot]), 0, 255).astype(np.uint8)
    expected = [True, True, True, False, False, False, False, False]
    assert same_colors(base.astype(np.uint8), stack).tolist() == expected


@st.composite
def hashes_with_neighbours(draw: st.DrawFn) -> list[int]:
    hashes: list[int] = []
    for _ in range(draw(st.integers(1, 30))):
        if hashes and draw(st.booleans()):
            value = draw(st.sampled_from(hashes))
            for bit in draw(st.lists(st.integers(0, 63), max_size=9)):
                value ^= 1 << bit
        else:
            value = draw(st.integers(0, (1 << 64) - 1))
        hashes.append(value)
    return hashes


def slowly(hashes: list[int], near: int) -> list[Duplicate | None]:
    """The definition: compare with all that stayed, take the nearest, of equals the first."""
    stay: list[int] = []
    result: list[Duplicate | None] = []
    for number, value in enumerate(hashes):
        best = min(((distance(value, hashes[other]), other) for other in stay), default=(65, 0))
        if best[0] <= near:
            result.append(Duplicate(id=str(number), of=str(best[1]), distance=best[0]))
        else:
            stay.append(number)
            result.append(None)
    return result


@settings(max_examples=150)
@given(hashes_with_neighbours(), st.integers(1, 8))
def test_looking_up_parts_finds_what_comparing_with_all_finds(hashes: list[int], near: int) -> None:
    colours: NDArray[np.uint8] = np.full((CELLS, CELLS, 3), 7, dtype=np.uint8)
    finder = DuplicateFinder(near)
    got = [
        finder.add(str(number), f"{number:064x}", Look(phash=value, colors=colours))
        for number, value in enumerate(hashes)
    ]
    assert got == slowly(hashes, near)


def test_equal_bytes_are_duplicates_at_any_setting_and_of_what_stays() -> None:
    look = look_at(scene(0))
    near = look_at(as_jpeg(scene(0), 40))
    apart = distance(look.phash, near.phash)
    one, other = "aa" * 32, "bb" * 32
    finder = DuplicateFinder(0)
    assert finder.add("a", one, look) is None
    assert finder.add("b", other, look) is None
    assert finder.add("c", one, near) == Duplicate(id="c", of="a", distance=0)
    assert (finder.same_bytes, finder.same_look) == (1, 0)
    finder = DuplicateFinder(8)
    assert finder.add("a", one, look) is None
    assert finder.add("b", other, near) == Duplicate(id="b", of="a", distance=apart)
    assert finder.add("c", other, near) == Duplicate(id="c", of="a", distance=apart)
    assert (finder.same_bytes, finder.same_look) == (1, 1)


@pytest.mark.parametrize("near", [-1, 9])
def test_a_distance_that_means_nothing_is_refused(near: int) -> None:
    with pytest.raises(ConfigError, match="is not from 0 to 8"):
        DuplicateFinder(near)


def test_many_pictures_need_few_comparisons(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Comparisons are counted, for time depends on the machine: all pairs of these are 2e8.
    compared = 0

    def counted(one: int, other: int) -> int:
        nonlocal compared
        compared += 1
        return distance(one, other)

    monkeypatch.setattr("sanakit.data.duplicates.distance", counted)
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 1 << 64, 20_000, dtype=np.uint64)
    colours = np.zeros((CELLS, CELLS, 3), dtype=np.uint8)
    finder = DuplicateFinder(4)
    for number, value in enumerate(hashes):
        finder.add(str(number), f"{number:064x}", Look(phash=int(value), colors=colours))
    assert compared < 20_000
