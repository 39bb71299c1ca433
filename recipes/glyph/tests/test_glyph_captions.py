"""Articles, phrases, templates of captions, and the split they must not leak across."""

from __future__ import annotations

import re

import numpy as np
import pytest
from recipes.glyph.data.backgrounds import BACKGROUNDS, captioned
from recipes.glyph.data.captions import (
    FREE_SHARE,
    FREE_WORDS,
    article,
    bare,
    captions,
    coloured,
    flag_captions,
    freely,
    icon_captions,
    painted_captions,
    phrase,
    spoken,
)
from recipes.glyph.data.colours import WORDS
from recipes.glyph.data.names import ALIASES, PHRASES
from recipes.glyph.data.rows.avatars import AvatarRow
from recipes.glyph.data.rows.emoji import STYLES
from recipes.glyph.data.rows.everyday_nouns import NOUNS
from recipes.glyph.data.rows.interface import PARTS
from recipes.glyph.data.rows.recoloured import SOURCES
from recipes.glyph.data.shades import SHADES, mixed_colours, shade
from recipes.glyph.data.split import HELD_PART, PROTECTED, fraction, split_of
from recipes.glyph.data.styles import STYLE_WORDS


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
    found = captions("red apple", style, key="k", tags=("fruit", "food"))
    assert 3 <= len(found) <= 5
    assert len(set(found)) == len(found)
    assert found[0] == "a red apple"
    assert all(caption == caption.lower() for caption in found)
    assert any(word in caption for caption in found for word in STYLE_WORDS[style])


def test_every_style_of_the_rows_has_words_and_no_two_share_them() -> None:
    used = {
        "3d", "clipart", "ink", "render", *STYLES.values(), *AvatarRow().counts(),
        *(part.style for part in PARTS), *(source.style for source in SOURCES),
        *(style for style in STYLE_WORDS if style.endswith("flag") or style == "flag"),
    }  # fmt: skip
    assert set(STYLE_WORDS) == used
    words = [word for pair in STYLE_WORDS.values() for word in pair]
    assert len(set(words)) == len(words)


def test_other_names_reach_the_captions() -> None:
    found = captions("automobile", "flat", key="k", names=("car",))
    assert "a car" in found
    assert "an automobile" in found
    assert any(caption.endswith("of a car") for caption in found)


def test_key_words_of_a_literal_name_get_their_articles() -> None:
    assert spoken("car under toll gantry") == "car under a toll gantry"
    assert spoken("key with house keychain") == "key with a house keychain"
    assert spoken("person in water") == "person in water"
    assert spoken("red apple") == "red apple"


@pytest.mark.parametrize("thing", [True, False])
def test_captions_of_an_interface_icon_all_say_that_it_is_one(thing: bool) -> None:
    found = icon_captions("login", "violet", key="k", thing=thing)
    assert 3 <= len(found) <= 5
    assert all("icon" in caption for caption in found)
    assert ("a login icon" in found) is not thing


def test_a_flag_is_called_by_its_country_with_the_article_the_country_has() -> None:
    found = flag_captions("flag of the united states", "round-flag", key="k")
    assert found[0] == "the flag of the united states"
    assert "united states flag" in found
    assert flag_captions("pirate flag", "round-flag", key="k")[0] == "a pirate flag"


def test_tags_are_said_unless_they_name_a_colour() -> None:
    found = captions("star", "flat", key="k", tags=("white", "night", "star"))
    assert "a star, night" in found
    assert not any("white" in caption for caption in found)


def test_a_skin_tone_is_said_in_every_caption() -> None:
    for caption in captions("waving hand", "flat", key="k", tags=("hello",), tone="dark skin tone"):
        assert "dark skin tone" in caption


def test_no_caption_speaks_of_the_background() -> None:
    for concept in (*NOUNS, *PHRASES, *ALIASES):
        for caption in captions(concept, "flat", key="k"):
            assert "background" not in caption


@pytest.mark.parametrize("noun", ["car", "grapes", "t-shirt", "cup"])
def test_captions_of_a_painted_drawing_all_name_its_colour_and_its_kind(noun: str) -> None:
    found = painted_captions(noun, "blue", "silhouette", key="k")
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
    assert {"red apple", "cat face", "star", "house", "car", "pizza"} <= PROTECTED
    for concept in PROTECTED:
        splits = [split_of(concept, style) for style in STYLE_WORDS]
        assert "held_concept" not in splits
        assert splits.count("train") >= len(STYLE_WORDS) // 2


def test_nouns_are_painted_in_ten_shades_and_no_row_of_the_table_was_lost() -> None:
    assert len(SHADES) == 10
    assert len(NOUNS) > 200
    assert NOUNS["pine tree"] == (("mdi", "pine-tree"),)
    assert all(not set(noun) & set(":|\n") for noun in NOUNS)


def test_shades_depend_on_the_key_alone_and_are_used_alike() -> None:
    assert shade("red", "a") == shade("red", "a")
    assert {shade("red", str(key)) for key in range(30)} == set(SHADES["red"])
    firsts = [mixed_colours(str(key))[0] for key in range(2000)]
    for colour in SHADES:
        # Four standard deviations of a count with probability 1/10.
        assert firsts.count(colour) == pytest.approx(200, abs=4 * (2000 * 0.09) ** 0.5)


def test_a_flag_is_never_held_out_as_a_concept() -> None:
    names = [f"flag of country {n}" for n in range(300)]
    assert "held_concept" not in {split_of(name, "round-flag") for name in names}


def test_backgrounds_are_colours_in_range_with_white_first() -> None:
    assert next(iter(BACKGROUNDS)) == "white"
    for colour in BACKGROUNDS.values():
        assert len(colour) == 3
        assert all(0 <= channel <= 1 for channel in colour)
    assert captioned("a cat", "pale blue") == "a cat, on a pale blue background"


def test_a_free_word_stands_before_the_noun_in_some_captions_that_begin_with_an_article() -> None:
    rng = np.random.default_rng(0)
    said = [freely("an orange cat", rng) for _ in range(4000)]
    changed = [text for text in said if text != "an orange cat"]
    spread = (FREE_SHARE * (1 - FREE_SHARE) / len(said)) ** 0.5
    assert abs(len(changed) / len(said) - FREE_SHARE) < 4 * spread
    assert set(changed) == {f"a {word} orange cat" for word in FREE_WORDS}
    assert {freely(text, rng) for _ in range(40) for text in ("two cats", "anchor")} == {
        "two cats",
        "anchor",
    }


def test_a_free_word_says_nothing_that_a_picture_shows() -> None:
    assert not set(FREE_WORDS) & {*WORDS, *BACKGROUNDS, "big", "small"}
    assert all(article(word).startswith("a ") for word in FREE_WORDS)
    styles = " ".join(word for words in STYLE_WORDS.values() for word in words)
    assert not set(FREE_WORDS) & set(styles.split())
