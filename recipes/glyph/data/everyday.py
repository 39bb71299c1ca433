"""One everyday name for each thing, so that every set's picture of it has the same concept."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from recipes.glyph.data.captions import bare, phrase
from recipes.glyph.data.emoji import Emoji, EmojiTable, plain_name
from recipes.glyph.data.names import ALIASES, PHRASES
from recipes.glyph.data.word_lists import word_list

# Label of a character: what people call it, where the label is no name for the thing itself.
_EVERYDAY = word_list("everyday-everyday")


def _table(text: str) -> dict[str, str]:
    """Pairs of "name: name", parted by bars and line ends."""
    pairs = (pair.partition(": ") for pair in re.split(r"\s*[|\n]\s*", text.strip()))
    return {name: other for name, _, other in pairs}


EVERYDAY: Mapping[str, str] = _table(_EVERYDAY)

_THINGS = {
    "animals & nature", "food & drink", "travel & places", "activities", "objects",
}  # fmt: skip
# Names of icons that mean something else than the character of that name draws.
_OTHER_MEANING = re.compile(
    r"(orange|pool|dash|date|pin|mask|bolt|light|board|card|spades|clubs|man|woman|party|wave|run"
    r"|time|clock\d*|shop|sound|sky|race|map|wheel|world|school|bank|hotel|vs|go|end|back|top|free"
    r"|cool|soon|new|on|off|up|first|second|third|foggy|construction|beginner|id|ok|loop|post"
    r"|horns|dancer|wind|tea|punch|point|guard|record|stop|pause|eject|shirt|chart|note|drum kit)"
)
# What sets of interface icons call things that have a better name.
_MEANINGS = _table(
    """
mouse: computer mouse | home: house | phone: telephone | bulb: light bulb | lightbulb: light bulb
lock: padlock | cog: gear | tv: television | mic: microphone | car: car | bike: bicycle
magnify: magnifying glass | settings: gear | trash: trash can | delete: trash can
email: envelope | mail: envelope | plane: airplane | gamepad: game controller
icecream: ice cream | location: map pin | pin: map pin | shopping cart: shopping cart
cart: shopping cart | glass: drinking glass | monitor: computer monitor | tree deciduous: tree
"""
)


def icon_name(name: str, *, literal: bool = False) -> str:
    """What an icon of a plain name shows, in words; in a ``literal`` set a mouse is an animal."""
    return name if literal else _MEANINGS.get(name, name)


_THE = re.compile(
    r"(united |netherlands|philippines|bahamas|maldives|gambia|seychelles|comoros|solomon islands"
    r"|marshall islands|cook islands|faroe|falkland|cayman|canary|czech republic|dominican republic"
    r"|central african|european union|vatican|isle of man|us |british |turks|northern mariana"
    r"|azores|pitcairn|cocos|aland|soviet|arab league|east african|basque|northern territory"
    r"|caribbean)"
)
_COUNTRIES = {
    "hong kong sar china": "hong kong", "macao sar china": "macao", "myanmar burma": "myanmar",
    "palestinian territories": "palestine", "congo kinshasa": "dr congo",
    "congo brazzaville": "congo", "turkiye": "turkey", "timor leste": "east timor",
}  # fmt: skip


def flag_of(country: str) -> str:
    """The concept of a country's or region's flag: "flag of the united states"."""
    plain = unicodedata.normalize("NFKD", country).encode("ascii", "ignore").decode()
    name = _COUNTRIES.get(plain, plain)
    return f"flag of {'the ' if _THE.match(name) else ''}{name}"


def concept_of(emoji: Emoji) -> str:
    """The concept of a character: a noun phrase without article wherever it has one."""
    if (name := EVERYDAY.get(emoji.name)) is not None:
        return name
    if emoji.group == "flags" and emoji.name.startswith("flag of "):
        return flag_of(emoji.name.removeprefix("flag of "))
    words = phrase(emoji.name)
    named = emoji.name in PHRASES or words.startswith("a clock showing")
    return bare(words) if named and words.startswith(("a ", "an ")) else emoji.name


def other_names(emoji: Emoji) -> tuple[str, ...]:
    """What else people call a character, the best name first and its label last.

    Whoever picks a character from a list reads the label, so that it must be known, too.
    """
    concept = concept_of(emoji)
    names = [*ALIASES.get(emoji.name, ()), *ALIASES.get(concept, ())]
    if emoji.group == "animals & nature" and emoji.name.endswith(" face"):
        names.append(emoji.name.removesuffix(" face"))
    if emoji.group != "flags" and not concept.startswith("clock"):
        names.append(emoji.name)
    return tuple(dict.fromkeys(name for name in names if name != concept))


def is_thing(name: str, table: EmojiTable) -> bool:
    """Whether a plain name is that of a character that stands for a thing."""
    emoji = None if _OTHER_MEANING.fullmatch(name) else table.find(name)
    return emoji is not None and emoji.group in _THINGS


def common_concept(name: str, table: EmojiTable) -> str:
    """The concept of an icon's name: that of the character of this name if it is a plain thing."""
    plain = plain_name(name)
    emoji = None if _OTHER_MEANING.fullmatch(plain) else table.find(plain)
    return concept_of(emoji) if emoji is not None and emoji.group in _THINGS else plain
