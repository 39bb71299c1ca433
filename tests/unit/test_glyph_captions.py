"""Articles, phrases, templates of captions, and the split they must not leak across."""

from __future__ import annotations

import re

import pytest

from sanakit.data.glyph.backgrounds import BACKGROUNDS, captioned
from sanakit.data.glyph.captions import (
    STYLE_WORDS,
    article,
    bare,
    captions,
    coloured,
    painted_captions,
    phrase,
)
from sanakit.data.glyph.names import ALIASES, PHRASES
from sanakit.data.glyph.selection import SILHOUETTE, STYLES
from sanakit.data.glyph.silhouettes import NOUNS, SHADES
from sanakit.data.glyph.split import HELD_PART, PROTECTED, fraction, split_of


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("red apple", "a red apple"), ("apple", "an apple"), ("unicorn", "a unicorn"),
        ("hourglass", "an hourglass"), ("ewe", "a ewe"), ("ufo", "a ufo"), ("x-ray", "an x-ray"),
        ("grapes", "grapes"), ("scissors", "scissors"), ("bus", "a bus"), ("octopus", "an octopus"),
        ("compass", "a compass"), ("bread", "bread"), ("hot beverage", "a hot beverage"),
        ("bird of prey", "a bird of prey"), ("cat with eyes", "a cat with eyes"),
        ("eyes with tears", "eyes with tears"), ("man lifting weights", "a man lifting weights"),
        ("two hearts", "two hearts"), ("santa claus", "santa claus"), ("scorpio", "scorpio"),
        ("scorpion", "a scorpion"), ("woman's hat", "a woman's hat"),
        ("rhinoceros", "a rhinoceros"), ("women wrestling", "women wrestling"),
        ("statues of stone", "statues of stone"), ("pair of socks", "a pair of socks"),
    ],
)  # fmt: skip
def test_articles_follow_sound_number_and_mass(name: str, expected: str) -> None:
    assert article(name) == expected


def test_a_name_that_has_an_article_gets_no_second_one() -> None:
    for name in ("red apple", "grapes", "open book"):
        assert article(article(name)) == article(name)


def test_bare_undoes_the_article() -> None:
    for name in ("red apple", "grapes", "open book", "unicorn"):
        assert bare(article(name)) == name


def test_a_name_that_is_no_noun_becomes_a_phrase() -> None:
    assert phrase("locked") == "a closed padlock"
    assert phrase("four o'clock") == "a clock showing four o'clock"
    assert phrase("ten thirty") == "a clock showing half past ten"
    assert phrase("red apple") == "a red apple"


def test_the_tables_are_in_the_words_of_captions() -> None:
    for text in [*PHRASES.values(), *(name for names in ALIASES.values() for name in names)]:
        assert text == " ".join(text.lower().split())
        assert text.isascii()
    assert all(names and concept not in names for concept, names in ALIASES.items())


def test_a_colour_goes_between_article_and_name_unless_the_name_has_one() -> None:
    assert coloured("orange", "car") == "an orange car"
    assert coloured("blue", "grapes") == "blue grapes"
    assert coloured("red", "green apple") is None


@pytest.mark.parametrize("style", STYLE_WORDS)
def test_captions_are_three_to_five_distinct_lower_case_phrases(style: str) -> None:
    found = captions("red apple", style, key="k", tags=("fruit", "food"), group="food & drink")
    assert 3 <= len(found) <= 5
    assert len(set(found)) == len(found)
    assert found[0] == "a red apple"
    assert all(caption == caption.lower() for caption in found)
    assert any(word in caption for caption in found for word in STYLE_WORDS[style])


def test_every_style_of_the_recipe_has_words_and_no_two_share_them() -> None:
    assert set(STYLE_WORDS) == {*STYLES.values(), SILHOUETTE}
    words = [word for pair in STYLE_WORDS.values() for word in pair]
    assert len(set(words)) == len(words)


def test_the_short_name_and_the_colour_reach_the_captions() -> None:
    found = captions("automobile", "flat", key="k", colour="blue")
    assert "a blue car" in found
    assert "an automobile" in found
    assert any(caption.endswith("of a blue car") for caption in found)


def test_a_name_that_says_its_colour_is_believed_against_the_pixels() -> None:
    for caption in captions("red heart", "blob", key="k", colour="pink"):
        assert "pink" not in caption


def test_tags_are_said_unless_they_name_a_colour() -> None:
    found = captions("star", "flat", key="k", tags=("white", "night", "star"), colour="yellow")
    assert "a star, night" in found
    assert not any("white" in caption for caption in found)


def test_a_name_that_is_no_noun_takes_no_colour() -> None:
    for caption in captions("four o'clock", "flat", key="k", colour="gray"):
        assert "gray" not in caption


def test_a_medium_skin_tone_is_said_in_every_caption() -> None:
    for caption in captions("waving hand", "flat", key="k", tags=("hello", "hey"), toned=True):
        assert "medium skin tone" in caption


def test_no_caption_speaks_of_the_background() -> None:
    for concept in (*NOUNS, *PHRASES, *ALIASES):
        for caption in captions(concept, "flat", key="k", colour="red"):
            assert "background" not in caption


@pytest.mark.parametrize("noun", ["car", "grapes", "t-shirt", "cup"])
def test_captions_of_a_painted_drawing_all_name_its_colour_and_its_kind(noun: str) -> None:
    found = painted_captions(noun, "blue", key="k")
    assert 3 <= len(found) <= 5
    for caption in found:
        assert re.search(r"\bblue\b", caption)
        assert "icon" in caption or "silhouette" in caption


def test_the_wording_depends_on_the_key_alone() -> None:
    one = captions("rocket", "flat", key="a", tags=("space", "launch", "travel"))
    assert one == captions("rocket", "flat", key="a", tags=("space", "launch", "travel"))
    assert len({captions("rocket", "flat", key=str(k))[1] for k in range(20)}) == 4


def test_fractions_are_spread_evenly_over_zero_to_one() -> None:
    numbers = [fraction(str(n)) for n in range(2000)]
    assert 0 <= min(numbers) < max(numbers) < 1
    # Three standard deviations of the mean of 2000 uniform numbers.
    assert sum(numbers) / 2000 == pytest.approx(0.5, abs=3 / (12 * 2000) ** 0.5)


def test_about_the_held_part_of_concepts_and_of_pairs_is_held() -> None:
    splits = [split_of(f"thing {n}", "flat") for n in range(4000)]
    slack = 3 * (HELD_PART * (1 - HELD_PART) / 4000) ** 0.5
    assert splits.count("held_concept") / 4000 == pytest.approx(HELD_PART, abs=slack)
    assert splits.count("held_style") / 4000 == pytest.approx(HELD_PART * 0.95, abs=slack)


def test_a_held_concept_is_held_in_every_style() -> None:
    held = [f"thing {n}" for n in range(200) if split_of(f"thing {n}", "3d") == "held_concept"]
    assert held
    for concept in held:
        assert {split_of(concept, style) for style in STYLE_WORDS} == {"held_concept"}


def test_everyday_concepts_are_never_held_and_are_trained_in_several_styles() -> None:
    assert {"red apple", "cat face", "star", "house", "automobile", "pizza"} <= PROTECTED
    for concept in PROTECTED:
        splits = [split_of(concept, style) for style in STYLE_WORDS]
        assert "held_concept" not in splits
        assert splits.count("train") >= 6


def test_nouns_are_painted_in_ten_shades_and_no_row_of_the_table_was_lost() -> None:
    assert len(SHADES) == 10
    assert len(NOUNS) > 200
    assert NOUNS["pine tree"] == (("mdi", "pine-tree"),)
    assert all(not set(noun) & set(":|\n") for noun in NOUNS)


def test_backgrounds_are_colours_in_range_with_white_first() -> None:
    assert next(iter(BACKGROUNDS)) == "white"
    for colour in BACKGROUNDS.values():
        assert len(colour) == 3
        assert all(0 <= channel <= 1 for channel in colour)
    assert captioned("a cat", "pale blue") == "a cat, on a pale blue background"
