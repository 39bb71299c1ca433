"""Compositions judged by program: fixed prompts, a ceiling, a floor, and what must not matter."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from recipes.glyph.data.backgrounds import BACKGROUNDS
from recipes.glyph.data.pictures import GlyphPictures
from recipes.glyph.data.shades import SHADES
from recipes.glyph.evaluate.composition import (
    KINDS,
    MEASURES,
    Finding,
    Judged,
    Sighting,
    Wanted,
    both_found,
    both_near,
    breakdown,
    figures_of,
    find,
    is_right,
    known_of,
    placed,
    real_pictures,
    shuffled,
    verdict,
    wanted_prompts,
)
from recipes.glyph.evaluate.composition_judge import (
    SHAPE,
    KnownThings,
    colours_of,
    crop,
    joined,
    known_things,
    shapes_of,
    take_apart,
    two_things,
    with_plain_looks,
)

from sanakit.errors import ConfigError, DataError
from tiny_compositions import NAMES, tiny_compositions

EACH = 20


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> GlyphPictures:
    return tiny_compositions(tmp_path_factory.mktemp("set") / "data")


@pytest.fixture(scope="module")
def prompts(pictures: GlyphPictures) -> list[Wanted]:
    return wanted_prompts(pictures.records, EACH)


@pytest.fixture(scope="module")
def known(pictures: GlyphPictures, prompts: list[Wanted]) -> KnownThings:
    found = known_of(pictures, prompts, shapes_of)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def real(pictures: GlyphPictures, prompts: list[Wanted]) -> np.ndarray:
    return real_pictures(pictures, prompts, side=pictures.size)


def shares(findings: list[Finding], prompts: list[Wanted]) -> dict[str, float]:
    """The part of each kind that is right."""
    return {
        kind: float(
            np.mean(
                [is_right(f, w) for f, w in zip(findings, prompts, strict=True) if w.kind == kind]
            )
        )
        for kind in KINDS
    }


def test_the_list_is_fixed_and_a_longer_one_begins_with_it(
    pictures: GlyphPictures, prompts: list[Wanted]
) -> None:
    again = wanted_prompts(pictures.records, EACH)
    assert again == prompts
    shorter = wanted_prompts(pictures.records, 5)
    for kind in KINDS:
        long, short = ([w for w in some if w.kind == kind] for some in (prompts, shorter))
        assert long[:5] == short
        assert wanted_prompts(pictures.records, 5, kinds=[kind]) == short
    assert wanted_prompts(pictures.records, EACH, seed=1) != prompts


def test_prompts_state_their_truth_and_training_shows_none_of_it(
    pictures: GlyphPictures, prompts: list[Wanted]
) -> None:
    number_words = ("", "one|single", "two", "three", "four")
    for one in prompts:
        assert one.kind == "background" or one.background == "white" or one.background in one.prompt
        if one.kind in ("background", "colour"):
            assert one.sample.number is not None
            assert pictures.records[one.sample.number].split == "held_style"
            assert one.background in one.prompt or one.kind == "colour"
            assert one.colour in one.prompt
        else:
            scene = one.sample.scene
            assert scene is not None
            assert scene.is_held or one.count == 1
            assert all(name in one.prompt for name in one.things) or one.count > 1
            if one.kind == "count":
                assert any(word in one.prompt for word in number_words[one.count].split("|"))


def test_each_truth_comes_as_often_as_any_other(prompts: list[Wanted]) -> None:
    for kind, of in (("background", BACKGROUNDS), ("colour", SHADES), ("count", range(1, 5))):
        times = Counter(w.truth[0] for w in prompts if w.kind == kind)
        assert set(times) == set(of)
        assert max(times.values()) - min(times.values()) <= 1


def test_no_colour_prompt_comes_twice_while_there_are_others(pictures: GlyphPictures) -> None:
    # Three held pairs of each colour, and two turns of each in twenty prompts.
    several = wanted_prompts(pictures.records, 40, kinds=["colour"])
    texts = [one.prompt for one in several]
    assert len(set(texts[:20])) == 20
    assert len(set(texts)) == 30


def test_a_list_that_cannot_be_made_says_so(pictures: GlyphPictures) -> None:
    with pytest.raises(ConfigError, match="count=0 is less than 1"):
        wanted_prompts(pictures.records, 0)
    with pytest.raises(ConfigError, match="no kind 'size'"):
        wanted_prompts(pictures.records, 1, kinds=["size"])  # type: ignore[list-item]
    trained = [replace(one, split="train") for one in pictures.records]
    with pytest.raises(DataError, match="held_style"):
        wanted_prompts(trained, 1, kinds=["colour"])
    renamed = dict(zip(NAMES, ("cat", "dog", "key", "cup", "hat", "bus"), strict=True))
    common = [replace(one, name=renamed[one.name]) for one in pictures.records]
    with pytest.raises(DataError, match="no held"):
        wanted_prompts(common, 2, kinds=["count"])


def test_real_pictures_are_right_and_those_of_other_prompts_are_not(
    prompts: list[Wanted], known: KnownThings, real: np.ndarray
) -> None:
    findings = find(real, prompts, known, shapes_of)
    ceiling = shares(findings, prompts)
    assert ceiling == {"background": 1, "colour": 1, "relation": 1, "count": 1}
    for kind, chance in {"background": 0.1, "colour": 0.12, "relation": 0.45, "count": 0.3}.items():
        rows = [n for n, one in enumerate(prompts) if one.kind == kind]
        floor = shuffled([findings[n] for n in rows], [prompts[n] for n in rows], is_right)
        assert np.mean(floor) < chance


def test_what_is_destroyed_is_not_right(
    prompts: list[Wanted], known: KnownThings, real: np.ndarray
) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, real.shape, dtype=np.uint8)
    found = shares(find(noise, prompts, known, shapes_of), prompts)
    assert max(found["background"], found["colour"], found["relation"]) <= 0.1
    empty = np.full_like(real, 255)
    blank = shares(find(empty, prompts, known, shapes_of), prompts)
    assert (blank["colour"], blank["relation"], blank["count"]) == (0, 0, 0)
    smeared = real.reshape(len(real), 6, 16, 6, 16, 3).mean(axis=(2, 4)).astype(np.uint8)
    coarse = shares(
        find(smeared.repeat(16, axis=1).repeat(16, axis=2), prompts, known, shapes_of), prompts
    )
    assert coarse["relation"] < 0.7
    assert coarse["count"] < 1


def test_a_mirrored_picture_turns_left_into_right_alone(
    prompts: list[Wanted], known: KnownThings, real: np.ndarray
) -> None:
    rows = [n for n, one in enumerate(prompts) if one.kind == "relation"]
    some = [prompts[n] for n in rows]
    axes = Counter(one.arrangement for one in some)
    assert min(axes["across"], axes["down"]) > 2
    # The wedge, mirrored, is still nearest to itself.
    for axis, name in ((2, "across"), (1, "down")):
        turned = find(np.flip(real[rows], axis), some, known, shapes_of)
        for finding, one in zip(turned, some, strict=True):
            if both_found(finding, one):
                assert is_right(finding, one) == (one.arrangement != name)


def test_where_the_things_stand_does_not_matter(
    prompts: list[Wanted], known: KnownThings, real: np.ndarray
) -> None:
    before = find(real, prompts, known, shapes_of)
    for shift, axis in ((2, 1), (-2, 2)):  # what is drawn stays inside
        moved = find(np.roll(real, shift, axis), prompts, known, shapes_of)
        assert [is_right(f, w) for f, w in zip(moved, prompts, strict=True)] == [
            is_right(f, w) for f, w in zip(before, prompts, strict=True)
        ]


def test_a_crop_knows_neither_place_nor_background_nor_paint(pictures: GlyphPictures) -> None:
    mask = np.zeros((96, 96), bool)
    mask[10:50, 20:40] = mask[40:50, 20:70] = True
    crops = []
    for (down, right), background, rgb in (
        ((0, 0), "white", (200, 30, 40)),
        ((30, 15), "pale blue", (20, 120, 50)),
        ((12, 5), "black", (240, 240, 240)),
    ):
        behind = np.rint(np.array(BACKGROUNDS[background]) * 255)
        picture = np.broadcast_to(behind, (96, 96, 3)).astype(np.uint8)
        picture[np.roll(mask, (down, right), (0, 1))] = rgb
        seen = take_apart(picture)
        crops.append(crop(seen, joined(seen.parts)))
    for other in crops[1:]:
        assert abs(crops[0].astype(int) - other).mean() < 2


def test_looks_know_things_that_are_blurred_and_networks_alone_need_not() -> None:
    rng = np.random.default_rng(0)
    crops = np.full((12, 112, 112, 3), 204, np.uint8)
    for one in crops:
        for _ in range(4):
            top, left = rng.integers(8, 60, 2)
            one[top : top + 40, left : left + 40] = rng.integers(0, 256, 3)
    small = crops.reshape(12, 16, 7, 16, 7, 3).mean(axis=(2, 4)).astype(np.uint8)
    blurred = small.repeat(7, axis=1).repeat(7, axis=2)

    def blind(some: np.ndarray) -> np.ndarray:
        return np.ones((len(some), 4), np.float32)

    looks = with_plain_looks(blind)
    for describe in (shapes_of, colours_of, looks):
        sharp, soft = describe(crops), describe(blurred)
        assert (soft @ sharp.T).argmax(axis=1).tolist() == list(range(12))
        np.testing.assert_allclose(describe(crops[3:4])[0], sharp[3], atol=1e-6)
    assert looks(crops).shape == (12, 4 + 24**2 + 3 * 16**2)
    np.testing.assert_allclose((looks(crops) ** 2).sum(axis=1), 1 + SHAPE**2 + 1, rtol=1e-4)
    recoloured = crops.copy()
    recoloured[crops[..., 0] != 204] = 0
    assert (shapes_of(recoloured) * shapes_of(crops)).sum(axis=1).min() > 0.5


def test_known_things_are_pictures_of_training_and_each_drawing_once(
    pictures: GlyphPictures,
) -> None:
    found = known_things(pictures, NAMES[:2], shapes_of)
    assert sorted(found.concepts) == sorted(NAMES[:2])  # ten colours of one drawing
    assert all(pictures.records[number].split == "train" for number in found.numbers)
    features = found.features[0] * 7
    likeness = found.likeness(features)
    assert list(likeness) == list(found.concepts)
    assert list(likeness.values()) == sorted(likeness.values(), reverse=True)
    assert likeness[found.concepts[0]] == pytest.approx(1, abs=1e-5)
    assert list(found.likeness(features, without=found.numbers[:1])) == [found.concepts[1]]
    with pytest.raises(DataError, match="whole zebra"):
        known_things(pictures, ["zebra"], shapes_of)


def test_of_several_ways_to_see_two_things_the_known_ones_are_taken(
    prompts: list[Wanted],
) -> None:
    picture = np.full((128, 128, 3), 255, np.uint8)
    for row in range(5):  # dashes, farther from each other than from the square
        picture[20 + 20 * row : 26 + 20 * row, 10:50] = 0
    picture[40:84, 58:102] = 0
    seen = take_apart(picture)
    ways = two_things(seen.parts)
    right = next(way for way in ways if {part.box[0] for part in way} == {10, 58})
    assert ways[0] is not right
    some = next(w for w in prompts if w.kind == "relation")
    wanted = replace(some, things=("dashes", "square"), arrangement="across")
    parts = sorted(right, key=lambda part: part.box[0])
    unit = shapes_of(np.stack([crop(seen, part) for part in parts]))
    both = KnownThings(wanted.things, (0, 1), unit)
    (finding,) = find([picture], [wanted], both, shapes_of)
    assert is_right(finding, wanted)


def test_a_background_of_stripes_or_of_an_unknown_colour_has_no_name(
    prompts: list[Wanted],
) -> None:
    gray = np.full((64, 64, 3), 120, np.uint8)
    striped = np.full((64, 64, 3), 255, np.uint8)
    striped[::2] = (200, 30, 40)
    striped[1::4] = (20, 160, 60)
    found = find([gray, striped], prompts[:2], None, shapes_of)
    assert [one.background for one in found] == ["", ""]


def sighted(*things: tuple[str, float, float]) -> Finding:
    return Finding(
        background="white",
        colour="",
        things=tuple(
            Sighting(likeness={name: 1.0}, other={}, centre=(x, y)) for name, x, y in things
        ),
    )


def test_a_relation_needs_both_things_their_order_and_its_axis(prompts: list[Wanted]) -> None:
    some = next(w for w in prompts if w.kind == "relation")
    wanted = replace(some, things=("cat", "key"), arrangement="across")
    right = sighted(("cat", 0.2, 0.5), ("key", 0.8, 0.4))
    assert is_right(right, wanted)
    assert not is_right(right, replace(wanted, arrangement="down"))
    assert is_right(
        sighted(("key", 0.3, 0.8), ("cat", 0.4, 0.2)), replace(wanted, arrangement="down")
    )
    for wrong in (
        sighted(("cat", 0.8, 0.5), ("key", 0.2, 0.4)),
        sighted(("cat", 0.4, 0.2), ("key", 0.6, 0.8)),  # above rather than left of
        sighted(("cat", 0.2, 0.5), ("cat", 0.8, 0.4)),
        sighted(("cat", 0.2, 0.5)),
        sighted(),
    ):
        assert not is_right(wrong, wanted)
    assert both_found(sighted(("key", 0.1, 0), ("cat", 0.9, 0)), wanted)


def test_what_nobody_recognises_may_stand_right_and_be_near(prompts: list[Wanted]) -> None:
    some = next(w for w in prompts if w.kind == "relation")
    wanted = replace(some, things=("cat", "key"), arrangement="across")
    far = {f"x{n}": 0.9 for n in range(4)}
    cat = {**far, "cat": 0.5, "key": 0.4}
    key = {"pin": 0.7, "key": 0.6, "cat": 0.5}

    def seen(left: dict[str, float], right: dict[str, float]) -> Finding:
        things = tuple(
            Sighting(likeness=one, centre=(x, 0.5)) for one, x in ((left, 0.2), (right, 0.8))
        )
        return Finding(background="", colour="", things=things)

    assert placed(seen(cat, key), wanted)
    assert not placed(seen(key, cat), wanted)
    assert not placed(seen(cat, key), replace(wanted, arrangement="down"))
    assert not placed(sighted(("cat", 0.2, 0.5)), wanted)
    assert both_near(seen(cat, key), wanted)
    assert both_near(seen(key, cat), wanted)  # wherever they stand
    assert not both_found(seen(cat, key), wanted)
    assert not both_near(seen({**far, "y": 0.8, **cat}, key), wanted)  # sixth is not near
    assert not both_near(seen(cat, cat), wanted)


def test_the_floor_asks_each_picture_all_prompts_but_its_own(prompts: list[Wanted]) -> None:
    counts = [w for w in prompts if w.kind == "count"][:4]  # one, two, three, four
    findings = [sighted(*[("x", 0.0, 0.0)] * one.count) for one in counts]
    assert shuffled(findings, counts, is_right) == [0, 0, 0, 0]
    assert shuffled(findings, [counts[0]] * 4, is_right) == [1, 0, 0, 0]
    assert shuffled(findings[:1], counts[:1], is_right) == []


def test_figures_stand_between_floor_and_ceilings(
    prompts: list[Wanted], known: KnownThings, real: np.ndarray
) -> None:
    findings = find(real, prompts, known, shapes_of)
    nothing = find(np.full_like(real, 255), prompts, known, shapes_of)
    figures = {f.name: f for f in figures_of(Judged(prompts, nothing, findings, findings))}
    for measure in MEASURES:
        assert figures[measure.name].value < 0.2, measure.name
        assert figures[f"{measure.name}: real pictures"].value == 1
        assert figures[measure.name].count == EACH
    assert figures["two-object relation: real, known by other art alone"].value < 1
    only = [w for w in prompts if w.kind == "colour"]
    few = figures_of(Judged(only, findings[:EACH], findings[:EACH], findings[:EACH]))
    assert {f.name.split(":")[0] for f in few} == {"object colour"}
    parts = breakdown(Judged(prompts, nothing, findings, findings))
    assert parts["real"]["count: 3"] == 1
    assert parts["drawn"]["count: 3"] == 0


def test_a_verdict_says_what_was_seen(
    prompts: list[Wanted], known: KnownThings, real: np.ndarray
) -> None:
    findings = find(real, prompts, known, shapes_of)
    for finding, one in zip(findings, prompts, strict=True):
        said = verdict(finding, one)
        if one.kind == "relation":
            word = "left of" if one.arrangement == "across" else "above"
            assert said in (
                f"{one.things[0]} {word} {one.things[1]}",
                f"{one.things[1]} {'right of' if word == 'left of' else 'below'} {one.things[0]}",
            )
        elif one.kind == "count":
            assert said == f"{one.count}: {one.things[0]}"
        else:
            assert said == one.truth[0]
    empty = find(np.full_like(real[:1], 255), [prompts[2 * EACH]], known, shapes_of)
    assert verdict(empty[0], prompts[2 * EACH]) == "fewer than two things"
