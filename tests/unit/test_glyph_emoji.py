"""The dictionary of emoji and the choice of what enters the set."""

from __future__ import annotations

import pytest

from sanakit.data.glyph.emoji import Emoji, EmojiTable, canonical, plain_name, squash
from sanakit.data.glyph.iconify import Collection, Icon
from sanakit.data.glyph.selection import (
    MEDIUM,
    STYLES,
    TONE_WEIGHT,
    emoji_weight,
    select,
    wanted,
)
from sanakit.data.glyph.silhouettes import NOUNS, SHADES


def emoji(name: str = "red apple", code: str = "1f34e", **changes: object) -> Emoji:
    values = {"tags": (), "group": "food & drink", "subgroup": "fruit", "tones": ()}
    return Emoji(name=name, code=code, **{**values, **changes})  # type: ignore[arg-type]


def collection(prefix: str, names: tuple[str, ...], **changes: object) -> Collection:
    icons = {name: Icon(name=name, body="<g/>", canvas=(0, 0, 1, 1)) for name in names}
    values = {"aliases": {}, "codepoints": {}, "icons": icons}
    return Collection(
        prefix=prefix, title="", author="", author_url="", licence="MIT", licence_url="",
        **{**values, **changes},
    )  # type: ignore[arg-type]  # fmt: skip


APPLE = emoji()
WAVE = emoji("waving hand", "1f44b", group="people & body", subgroup="fingers open")
TABLE = EmojiTable([(APPLE, ["red apple"]), (WAVE, ["waving hand"])])


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


def test_a_set_teaches_new_names_and_changes_none() -> None:
    table = EmojiTable([(APPLE, ["red apple"]), (WAVE, ["waving hand"])])
    table.learn({"fruit-of-eden": "1F34E", "red-apple": "1F44B"}, {"eden": "fruit-of-eden"})
    assert table.find("fruit of eden") is APPLE
    assert table.find("eden") is APPLE
    assert table.find("red apple") is APPLE


def test_letters_national_flags_and_surplus_skin_tones_are_not_wanted() -> None:
    assert wanted(APPLE)
    assert wanted(emoji("chequered flag", group="flags", subgroup="other flags"))
    assert not wanted(emoji("flag of x", group="flags", subgroup="country flags"))
    assert not wanted(emoji("keycap of 1", group="symbols", subgroup="keypad characters"))
    assert not wanted(emoji("japanese here button", group="symbols", subgroup="alphanum-symbols"))
    assert not wanted(emoji("letter a", group=""))
    assert wanted(emoji(tones=(MEDIUM,)))
    assert not wanted(emoji(tones=(1,)))
    assert not wanted(emoji(tones=(MEDIUM, MEDIUM)))


def test_things_outweigh_roles_and_roles_outweigh_families() -> None:
    people = {"group": "people & body"}
    cook = emoji_weight(emoji("cook", subgroup="roles & careers", **people))
    man = emoji_weight(emoji("man cook", subgroup="roles & careers", **people))
    family = emoji_weight(emoji("family of man and boy", subgroup="family", **people))
    assert emoji_weight(APPLE) == 1 > cook > man > family > 0
    assert emoji_weight(emoji(tones=(MEDIUM,))) == TONE_WEIGHT


def test_ids_are_unique_and_the_order_does_not_depend_on_the_order_of_names() -> None:
    sets = {
        "noto": collection("noto", ("waving-hand", "red-apple")),
        "mdi": collection("mdi", ("star", "heart")),
    }
    entries = select(sets, ["1f44b", "1f34e"], TABLE)
    again = select(dict(reversed(sets.items())), ["1f34e", "1f44b"], TABLE)
    assert [entry.id for entry in entries] == [entry.id for entry in again]
    assert len({entry.id for entry in entries}) == len(entries)
    assert [entry.id for entry in entries[:4]] == [
        "fluent-emoji-3d/1f34e", "fluent-emoji-3d/1f44b", "noto/red-apple", "noto/waving-hand",
    ]  # fmt: skip


def test_one_concept_has_one_name_in_every_set() -> None:
    sets = {
        "fxemoji": collection("fxemoji", ("redapple", "housebuilding")),
        "noto": collection("noto", ("eden",), codepoints={"eden": "1f34e"}),
        "streamline-emojis": collection("streamline-emojis", ("red-apple-1", "red-apple-2")),
    }
    entries = select(sets, ["1f34e"], TABLE)
    assert {entry.concept for entry in entries} == {"red apple"}
    assert {entry.style for entry in entries} == {"3d", "soft", "toy", "outline"}


def test_numbered_variants_share_the_weight_of_one_picture() -> None:
    sets = {"streamline-emojis": collection("streamline-emojis", ("red-apple-1", "red-apple-2"))}
    assert [entry.weight for entry in select(sets, [], TABLE)] == [0.5, 0.5]


def test_a_character_is_rendered_in_3d_once_even_if_two_files_have_it() -> None:
    entries = select({}, ["1f34e", "1f34e-fe0f"], TABLE)
    assert [entry.icon for entry in entries] == ["1f34e"]


def test_icons_nobody_knows_and_text_variants_are_left_out() -> None:
    names = ("red-apple", "firefox-logo", "waving-hand-text")
    codes = {"waving-hand-text": "1f44b"}
    sets = {"noto": collection("noto", names, codepoints=codes)}
    assert [entry.icon for entry in select(sets, [], TABLE)] == ["red-apple"]


def test_a_noun_is_painted_in_every_colour() -> None:
    entries = select({"mdi": collection("mdi", ("car",))}, [], TABLE)
    assert [entry.colour for entry in entries] == list(SHADES)
    assert all(entry.shade in SHADES[entry.colour] for entry in entries)
    assert {entry.concept for entry in entries} == {"car"}
    assert ("mdi", "car") in NOUNS["car"]


def test_the_3d_renderings_come_first() -> None:
    assert next(iter(STYLES.values())) == "3d"
