"""The dictionary of emoji, everyday names, and the rows of emoji and flags."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from recipes.glyph.data.emoji import Emoji, EmojiTable, canonical, plain_name, read_emoji, squash
from recipes.glyph.data.everyday import (
    EVERYDAY,
    common_concept,
    concept_of,
    flag_of,
    icon_name,
    other_names,
)
from recipes.glyph.data.packages import EMOJIBASE, FLUENT_3D, ICONIFY
from recipes.glyph.data.rows.emoji import (
    PAIR_WEIGHT,
    STYLES,
    TONE_WEIGHT,
    Emoji3DRow,
    EmojiRow,
    emoji_weight,
    is_cutout,
    tone_words,
    wanted,
)
from recipes.glyph.data.rows.flags import PREFIXES, FlagRow
from recipes.glyph.data.rows.row import Art

from tiny_art import tar_bytes, write_emojibase, write_iconify


def emoji(name: str = "red apple", code: str = "1f34e", **changes: object) -> Emoji:
    values = {"tags": (), "group": "food & drink", "subgroup": "fruit", "tones": ()}
    return Emoji(name=name, code=code, **{**values, **changes})  # type: ignore[arg-type]


APPLE = emoji()
WAVE = emoji("waving hand", "1f44b", group="people & body", subgroup="fingers open")
TABLE = EmojiTable([(APPLE, ["red apple"]), (WAVE, ["waving hand"])])


def read_emoji_row(folder: Path, sets: Mapping[str, Mapping[str, object]]) -> list[Art]:
    whole: dict[str, Mapping[str, object]] = {prefix: {} for prefix in STYLES}
    archives = {
        ICONIFY: write_iconify(folder / "icons.tgz", {**whole, **sets}),
        EMOJIBASE: write_emojibase(folder / "emoji.tgz"),
    }
    return EmojiRow().read(archives)[0]


@pytest.mark.parametrize("code", ["1F34E", "1f34e-fe0f", "01F34E_FE0F"])
def test_code_points_have_one_spelling(code: str) -> None:
    assert canonical(code) == "1f34e"


def test_the_joiner_and_the_skin_tone_stay_in_code_points() -> None:
    assert canonical("1F468-1F3FD-200D-2695-FE0F") == "1f468-1f3fd-200d-2695"


def test_squashed_names_agree_across_sets() -> None:
    assert squash("Piñata") == squash("pinata")
    assert squash("face-with-tears-of-joy") == squash("Face with Tears of Joy")
    assert squash("salt & pepper") == squash("salt-and-pepper")


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("red apple", "red apple"), ("woman: red hair", "woman with red hair"),
        ("man: bald", "man with bald head"), ("family: man, girl", "family of man and girl"),
        ("person walking: facing right", "person walking facing right"),
        ("T-Rex", "t rex"), ("“free” button", "free button"), ("one o\u2019clock", "one o'clock"),
        ("Japanese “reserved” button", "japanese reserved button"),
        ("piñata", "pinata"),
        ("A button (blood type)", "a button blood type"), ("Mrs. Claus", "mrs claus"),
    ],
)  # fmt: skip
def test_labels_become_plain_names(label: str, name: str) -> None:
    assert plain_name(label) == name


def test_a_character_is_found_by_code_points_first_then_by_name() -> None:
    assert TABLE.find("waving-hand", "1F34E-FE0F") is APPLE
    assert TABLE.find("redapple") is APPLE
    assert TABLE.find("green apple") is None
    assert TABLE.find("red-apple", "1f999") is APPLE


def test_a_name_without_latin_letters_leads_nowhere() -> None:
    table = EmojiTable([(APPLE, ["\u82f9\u679c"])])
    assert table.find("") is None
    assert table.find("\u68a8", "ffff") is None


def test_a_set_teaches_new_names_and_changes_none() -> None:
    table = EmojiTable([(APPLE, ["red apple"]), (WAVE, ["waving hand"])])
    table.learn({"fruit-of-eden": "1F34E", "red-apple": "1F44B"}, {"eden": "fruit-of-eden"})
    assert table.find("fruit of eden") is APPLE
    assert table.find("eden") is APPLE
    assert table.find("red apple") is APPLE


def test_letters_and_parts_of_characters_are_not_wanted_and_flags_and_tones_are() -> None:
    assert wanted(APPLE)
    assert wanted(emoji("flag of x", group="flags", subgroup="country flags"))
    assert not wanted(emoji("keycap of 1", group="symbols", subgroup="keypad characters"))
    assert not wanted(emoji("japanese here button", group="symbols", subgroup="alphanum-symbols"))
    assert not wanted(emoji("letter a", group=""))
    assert all(wanted(emoji(tones=(tone,))) for tone in range(1, 6))


def test_things_outweigh_roles_and_roles_outweigh_families() -> None:
    people = {"group": "people & body"}
    cook = emoji_weight(emoji("cook", subgroup="roles & careers", **people))
    man = emoji_weight(emoji("man cook", subgroup="roles & careers", **people))
    family = emoji_weight(emoji("family of man and boy", subgroup="family", **people))
    assert emoji_weight(APPLE) == 1 > cook > man > family > 0


def test_all_skin_tones_of_a_character_together_weigh_less_than_its_plain_picture() -> None:
    assert emoji_weight(emoji(tones=(3,))) == TONE_WEIGHT
    assert emoji_weight(emoji(tones=(3, 1))) == PAIR_WEIGHT
    assert 5 * TONE_WEIGHT < 1
    assert 25 * PAIR_WEIGHT < 1


def test_every_caption_of_a_toned_character_names_its_tones(tmp_path: Path) -> None:
    names = tuple(f"wave-{tone}" for tone in range(6))
    codes = {f"1f44b-{tone}": f"wave-{tone}" for tone in range(1, 6)} | {"1f44b": "wave-0"}
    art = read_emoji_row(tmp_path, {"noto": {"names": names, "chars": codes}})
    words = ["", *(tone_words((tone,)) for tone in range(1, 6))]
    assert words[1:] == [
        f"{tone} skin tone" for tone in ("light", "medium-light", "medium", "medium-dark", "dark")
    ]
    for one, tone in zip(art, words, strict=True):
        assert one.concept == "waving hand"
        assert all(tone in caption for caption in one.captions)
        assert any("skin" in caption for caption in one.captions) == bool(tone)
    assert tone_words((1, 5)) == "light and dark skin tones"
    assert tone_words((5, 5)) == "dark skin tone"


def test_one_concept_has_one_name_in_every_set(tmp_path: Path) -> None:
    sets = {
        "fxemoji": {"names": ("redapple", "automobile")},
        "noto": {"names": ("eden",), "chars": {"1f34e": "eden"}},
        "streamline-emojis": {"names": ("red-apple-1", "red-apple-2")},
    }
    art = read_emoji_row(tmp_path, sets)
    assert {one.concept for one in art} == {"red apple", "car"}
    apples = [one for one in art if one.concept == "red apple"]
    assert {one.style for one in apples} == {"soft", "toy", "outline"}
    assert [one.weight for one in apples if one.style == "outline"] == [0.5, 0.5]


def test_icons_nobody_knows_and_text_variants_are_left_out(tmp_path: Path) -> None:
    names = ("red-apple", "firefox-logo", "wave-text")
    sets = {"noto": {"names": names, "chars": {"1f44b": "wave-text"}}}
    assert [one.id for one in read_emoji_row(tmp_path, sets)] == ["noto/red-apple"]


def test_things_can_stand_in_compositions_and_scenes_people_and_plurals_cannot() -> None:
    assert is_cutout(APPLE)
    assert is_cutout(emoji("locked", group="objects", subgroup="lock & keys"))
    assert not is_cutout(WAVE)
    assert not is_cutout(emoji("grapes"))
    assert not is_cutout(emoji("broccoli"))
    assert not is_cutout(emoji("sunrise", group="travel & places", subgroup="other places"))
    assert not is_cutout(emoji("flag of japan", group="flags", subgroup="country flags"))


def test_a_colour_may_be_measured_of_things_and_not_of_faces_and_flags(tmp_path: Path) -> None:
    art = read_emoji_row(tmp_path, {"noto": {"names": ("red-apple", "waving-hand", "flag-japan")}})
    assert {one.concept: one.colour for one in art} == {
        "red apple": "", "waving hand": None, "flag of japan": None
    }  # fmt: skip


def test_a_character_is_rendered_in_3d_once_even_if_two_files_have_it(tmp_path: Path) -> None:
    files = {f"package/assets/{code}.webp": b"x" for code in ("1f34e", "1f34e-fe0f", "1f44b")}
    (tmp_path / "3d.tgz").write_bytes(tar_bytes(files))
    emojibase = write_emojibase(tmp_path / "emoji.tgz")
    art, credits = Emoji3DRow().read({FLUENT_3D: tmp_path / "3d.tgz", EMOJIBASE: emojibase})
    assert [one.id for one in art] == ["fluent-emoji-3d/1f34e", "fluent-emoji-3d/1f44b"]
    assert all(one.encoded == b"x" and one.icon is None for one in art)
    assert {credit.source for credit in credits} == {"fluent-emoji-3d", "emojibase"}


def test_everyday_names_are_in_the_words_of_captions_and_lead_to_no_other() -> None:
    for name, everyday in EVERYDAY.items():
        assert everyday == " ".join(everyday.lower().split())
        assert everyday not in EVERYDAY, name


def test_concepts_are_noun_phrases_without_their_article() -> None:
    assert concept_of(emoji("automobile")) == "car"
    assert concept_of(emoji("ice")) == "ice cube"
    assert concept_of(emoji("four o'clock")) == "clock showing four o'clock"
    assert concept_of(emoji("men holding hands")) == "men holding hands"
    assert "car" not in other_names(emoji("automobile"))
    assert other_names(emoji("automobile"))[-1] == "automobile"  # as lists of characters have it


def test_the_same_thing_has_the_same_concept_in_emoji_and_in_icons(tmp_path: Path) -> None:
    table = read_emoji(write_emojibase(tmp_path / "emoji.tgz"))
    assert common_concept("car", table) == "car"
    assert common_concept("padlock", table) == "padlock"
    assert common_concept("locked", table) == "padlock"
    assert common_concept("waving hand", table) == "waving hand"


def test_a_mouse_of_an_interface_is_a_computer_mouse() -> None:
    assert icon_name("mouse") == "computer mouse"
    assert icon_name("mouse", literal=True) == "mouse"


def test_countries_take_the_article_they_have() -> None:
    assert flag_of("united states") == "flag of the united states"
    assert flag_of("japan") == "flag of japan"
    assert flag_of("côte d'ivoire") == "flag of cote d'ivoire"
    assert flag_of("türkiye") == "flag of turkey"


def test_flags_have_their_countries_names_in_every_set_and_shape(tmp_path: Path) -> None:
    sets: dict[str, Mapping[str, object]] = {prefix: {} for prefix in PREFIXES}
    sets["flag"] = {"names": ("jp-1x1", "jp-4x3", "us-4x3", "xx-1x1")}
    sets["circle-flags"] = {"names": ("jp", "us-ca", "en-us", "lgbt")}
    archives = {
        ICONIFY: write_iconify(tmp_path / "icons.tgz", sets),
        EMOJIBASE: write_emojibase(tmp_path / "emoji.tgz"),
    }
    art, credits = FlagRow().read(archives)
    assert {(one.id, one.concept) for one in art} == {
        ("flag/jp-1x1", "flag of japan"), ("flag/jp-4x3", "flag of japan"),
        ("flag/us-4x3", "flag of the united states"), ("circle-flags/jp", "flag of japan"),
        ("circle-flags/us-ca", "flag of california"), ("circle-flags/lgbt", "rainbow flag"),
    }  # fmt: skip
    assert len({one.style for one in art if one.concept == "flag of japan"}) == 3
    assert len(credits) == len(PREFIXES) + 1
