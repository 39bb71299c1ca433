"""Composites: what a caption says is what the pixels show."""

from __future__ import annotations

import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from recipes.glyph.data.backgrounds import BACKGROUNDS
from recipes.glyph.data.colours import CLOSE, WORDS, distance, name_pixels
from recipes.glyph.data.composites import KINDS, SceneTable, draw_composite
from recipes.glyph.data.layout import apart, cells
from recipes.glyph.data.pictures import GlyphPictures
from recipes.glyph.data.plurals import NUMBERS, plural
from recipes.glyph.data.scenes import Scene, Thing, caption, facts
from recipes.glyph.data.split import HELD_PART

from sanakit.errors import DataError
from tiny_pictures import tiny_pictures
from tiny_scenes import PAINTED, SIZE, THINGS, tiny_scenes


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> GlyphPictures:
    return tiny_scenes(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(scope="module")
def scenes(pictures: GlyphPictures) -> list[Scene]:
    table, rng = SceneTable(pictures.records), np.random.default_rng(1)
    return [table.draw(rng) for _ in range(600)]


def colour_of(scene: Scene, thing: Thing) -> tuple[int, ...]:
    if thing.shade:
        return tuple(bytes.fromhex(thing.shade[1:]))
    return THINGS[thing.concept]


def mask_of(scene: Scene, thing: Thing, rgba: np.ndarray) -> np.ndarray:
    """The pixels of a thing, known by its colour alone."""
    near = np.abs(rgba[..., :3].astype(int) - colour_of(scene, thing)).max(axis=-1) <= 12
    return near & (rgba[..., 3] > 128)


def islands(mask: np.ndarray) -> int:
    """How many separate pieces a mask has."""
    left, found = {tuple(at) for at in np.argwhere(mask).tolist()}, 0
    while left:
        found += 1
        front = [left.pop()]
        while front:
            y, x = front.pop()
            for at in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if at in left:
                    left.remove(at)
                    front.append(at)
    return found


def centre(mask: np.ndarray) -> tuple[float, float]:
    y, x = np.nonzero(mask)
    return float(x.mean()), float(y.mean())


def told_apart(scene: Scene) -> bool:
    """Whether the things of a scene differ enough in colour for the test to find each."""
    pairs = combinations([colour_of(scene, thing) for thing in scene.things], 2)
    return all(max(abs(a - b) for a, b in zip(*pair, strict=True)) > 40 for pair in pairs)


def test_scenes_of_every_kind_come_by_their_share(scenes: list[Scene]) -> None:
    counts = Counter(scene.kind for scene in scenes)
    # Some draws do not go together and are drawn again, which costs some kinds more than others.
    for kind, share in KINDS.items():
        assert counts[kind] / len(scenes) == pytest.approx(share, abs=0.12)
    assert {len(scene.boxes) for scene in scenes} == {1, 2, 3, 4}
    assert {thing.count for scene in scenes for thing in scene.things} == {1, 2, 3, 4}


def test_nothing_overlaps_or_leaves_the_picture(scenes: list[Scene]) -> None:
    for scene in scenes:
        boxes = [box for _, box in scene.boxes]
        assert apart(boxes)
        for left, top, width, height in boxes:
            assert min(left, top) > 0
            assert max(left + width, top + height) < 1
            assert max(width, height) > 0.07


def test_every_thing_is_there_as_often_as_said_and_in_its_colour(
    scenes: list[Scene], pictures: GlyphPictures
) -> None:
    for scene in filter(told_apart, scenes[:250]):
        rgba = draw_composite(scene, pictures)
        assert rgba.shape == (SIZE, SIZE, 4)
        for thing in scene.things:
            mask = mask_of(scene, thing, rgba)
            assert islands(mask) == thing.count
            if thing.shade:
                word = WORDS[np.bincount(name_pixels(rgba[mask][:, :3])).argmax()]
                assert word == thing.colour
        # Nothing else is drawn.
        assert islands(rgba[..., 3] > 128) == sum(thing.count for thing in scene.things)


def test_relations_and_rows_are_true_of_the_pixels(
    scenes: list[Scene], pictures: GlyphPictures
) -> None:
    seen = set()
    ordered = [scene for scene in scenes if scene.kind in ("relation", "row", "pair")]
    for scene in filter(told_apart, ordered[:250]):
        rgba = draw_composite(scene, pictures)
        centres = [centre(mask_of(scene, thing, rgba)) for thing in scene.things]
        axis = 0 if scene.arrangement == "across" else 1
        along = [at[axis] for at in centres]
        assert along == sorted(along)
        # Beside is beside: things are farther apart along the line than off it.
        off = [at[1 - axis] for at in centres]
        assert max(np.diff(along)) > np.abs(np.diff(off)).max() / 2
        seen.add((scene.kind, scene.arrangement))
    assert len(seen) == 6


def test_big_is_much_bigger_than_small(scenes: list[Scene], pictures: GlyphPictures) -> None:
    sized = [scene for scene in scenes if any(thing.size for thing in scene.things)]
    assert len(sized) > 20
    for scene in filter(told_apart, sized):
        rgba = draw_composite(scene, pictures)
        areas = {t.size: int(mask_of(scene, t, rgba).sum()) for t in scene.things}
        assert areas["big"] > 1.8 * areas["small"]


def test_things_show_on_their_background(scenes: list[Scene]) -> None:
    for scene in scenes:
        for thing in scene.things:
            if thing.shade:
                paint = np.array(colour_of(scene, thing)) / 255
                assert distance(paint, BACKGROUNDS[scene.background]) > CLOSE
                assert (thing.colour, scene.background) != ("black", "dark blue")
            elif thing.concept == "fish":
                assert scene.background != "peach"
    shares = Counter(scene.background for scene in scenes)
    assert set(shares) == set(BACKGROUNDS)
    assert 0.25 < shares["white"] / len(scenes) < 0.5


NAME = r"(?P<{0}size>big|small)? ?(?P<{0}colour>{1})? ?(?P<{0}concept>{2})"
CONCEPTS = {plural(name): name for name in (*THINGS, *PAINTED)} | {
    n: n for n in (*THINGS, *PAINTED)
}


def name_pattern(prefix: str) -> str:
    concepts = "|".join(sorted(map(re.escape, CONCEPTS), key=len, reverse=True))
    return NAME.format(prefix, "|".join(WORDS), concepts)


ONE, TWO, THREE = (rf"an? {name_pattern(p)}" for p in ("a_", "b_", "c_"))
MANY = [rf"(?P<{p}count>one|two|three|four) {name_pattern(p)}" for p in ("a_", "b_")]
FORMS = [  # what a caption may look like, and in which direction its first thing is from the next
    (rf"{ONE} (?:to the )?left of {TWO}", "across", 1),
    (rf"{ONE} (?:to the )?right of {TWO}", "across", -1),
    (rf"{ONE} on the left and {TWO} on the right", "across", 1),
    (rf"{ONE} (?:above|over) {TWO}", "down", 1),
    (rf"{ONE} (?:below|under) {TWO}", "down", -1),
    (rf"{ONE} at the top and {TWO} at the bottom", "down", 1),
    (rf"{ONE} next to {TWO}", "across", 0),
    (rf"{ONE} and {TWO}", "", 0),
    (rf"from left to right: {ONE}, {TWO} and {THREE}", "across", 1),
    (rf"{ONE}, {TWO} and {THREE}(?: in a row)?", "across", 1),
    (rf"from top to bottom: {ONE}, {TWO} and {THREE}", "down", 1),
    (rf"{ONE}, {TWO} and {THREE}(?: in a column|, top to bottom)", "down", 1),
    (rf"(?:a single|just one) {name_pattern('a_')}", "", 0),
    (rf"(?:exactly )?{MANY[0]}", "", 0),
    (rf"{MANY[0]} in a row", "across", 0),
    (rf"{MANY[0]} in a column", "down", 0),
    (rf"{MANY[0]} and {MANY[1]}", "", 0),
]


def parse(text: str) -> tuple[list[tuple[str, str, str, int]], str, int]:
    """The things a caption names, as (size, colour, concept, count), and how they stand."""
    for pattern, arrangement, direction in FORMS:
        match = re.fullmatch(pattern, text)
        if match:
            parts = match.groupdict()
            found = []
            for prefix in ("a_", "b_", "c_"):
                if f"{prefix}concept" in parts:
                    count = NUMBERS.index(parts.get(f"{prefix}count") or "one")
                    said = parts[f"{prefix}concept"]
                    assert said == (plural(CONCEPTS[said]) if count > 1 else CONCEPTS[said])
                    found.append((
                        parts[f"{prefix}size"] or "", parts[f"{prefix}colour"] or "",
                        CONCEPTS[said], count,
                    ))  # fmt: skip
            return found, arrangement, direction
    raise AssertionError(f"no form fits {text!r}")


def test_every_caption_says_what_the_scene_is(scenes: list[Scene]) -> None:
    seen = set()
    for scene in scenes:
        true = [(t.size, t.colour, t.concept, t.count) for t in scene.things]
        options = facts(scene)
        assert len(set(options)) == len(options) >= 2
        for text in options:
            things, arrangement, direction = parse(text)
            assert sorted(things) == sorted(true), text
            if arrangement:
                assert arrangement == scene.arrangement, text
            if direction:
                assert things == true[::direction], text
            seen.add((arrangement, direction, len(things)))
    assert len(seen) == 11


def test_a_caption_ends_in_its_style_and_its_background() -> None:
    thing = Thing(number=0, concept="key", colour="red", count=2)
    box = (0.1, 0.1, 0.3, 0.3)
    scene = Scene(
        kind="count", things=(thing,), arrangement="across", boxes=((0, box), (0, box)),
        background="mint", style="flat vector emoji",
    )  # fmt: skip
    said = [
        caption(scene, facts(scene)[0], with_style=style, with_background=background)
        for style in (False, True)
        for background in (False, True)
    ]
    assert said == [
        "two red keys",
        "two red keys, on a mint background",
        "two red keys, flat vector emoji style",
        "two red keys, flat vector emoji style, on a mint background",
    ]


def test_held_combinations_are_never_drawn_for_training(
    scenes: list[Scene], pictures: GlyphPictures
) -> None:
    table, rng = SceneTable(pictures.records), np.random.default_rng(2)
    held = [table.draw(rng, "held_scene") for _ in range(40)]
    train_keys = {key for scene in scenes for key in scene.keys}
    assert all(scene.is_held for scene in held)
    assert not any(scene.is_held for scene in scenes)
    for scene in held:
        assert not set(scene.keys) <= train_keys
    assert 0 < HELD_PART < 0.2


def test_a_relation_said_from_either_side_is_one_combination() -> None:
    key, cup = Thing(number=0, concept="key"), Thing(number=1, concept="cup", colour="red")
    box = (0.1, 0.1, 0.3, 0.3)

    def scene(*things: Thing) -> Scene:
        return Scene(
            kind="relation", things=things, arrangement="across",
            boxes=((0, box), (1, box)), background="white", style="",
        )  # fmt: skip

    assert scene(key, cup).keys == ("across:key|cup",)
    assert scene(cup, key).keys == ("across:cup|key",)


def test_only_known_whole_things_are_used_and_none_twice(
    scenes: list[Scene], pictures: GlyphPictures
) -> None:
    for scene in scenes:
        names = [thing.concept for thing in scene.things]
        assert not set(names) & {"gorilla", "flag", "dot"}
        assert len(set(names)) == len(names)
        styles = {pictures.records[thing.number].style for thing in scene.things}
        assert len(styles) == 1
    assert {thing.concept for scene in scenes for thing in scene.things} == {*THINGS, *PAINTED}


def test_a_scene_is_a_function_of_its_generator(pictures: GlyphPictures) -> None:
    def draw(seed: int) -> list[Scene]:
        table, rng = SceneTable(pictures.records), np.random.default_rng(seed)
        return [table.draw(rng) for _ in range(20)]

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)
    pixels = [draw_composite(scene, pictures) for scene in draw(3)]
    assert all(
        (a == draw_composite(b, pictures)).all() for a, b in zip(pixels, draw(3), strict=True)
    )


@pytest.mark.parametrize("arrangement", ["across", "down", "scattered"])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_cells_lie_inside_the_picture_and_apart(count: int, arrangement: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        found = cells(count, arrangement, rng)
        assert len(found) == count
        assert apart(found)
        assert all(min(c[:2]) > 0 and c[0] + c[2] < 1 and c[1] + c[3] < 1 for c in found)
        if arrangement != "scattered":
            starts = [cell[0 if arrangement == "across" else 1] for cell in found]
            assert starts == sorted(starts)


def test_a_set_without_things_to_put_together_says_so(tmp_path: Path) -> None:
    records = tiny_pictures(tmp_path).records
    with pytest.raises(DataError, match="no style has three different things"):
        SceneTable(records)
