"""Which drawings enter the set, in which style, under which concept and with which weight."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from sanakit.data.glyph.emoji import Emoji, EmojiTable, plain_name, squash
from sanakit.data.glyph.iconify import Collection
from sanakit.data.glyph.silhouettes import NOUNS, SHADES

FLUENT_3D_SOURCE = "fluent-emoji-3d"

# Set -> our name of its style, in the order of the pictures.
STYLES: Mapping[str, str] = {
    FLUENT_3D_SOURCE: "3d",
    "fluent-emoji-flat": "flat",
    "fluent-emoji": "gradient",
    "noto": "soft",
    "twemoji": "simple",
    "noto-v1": "blob",
    "emojione": "bright",
    "fxemoji": "toy",
    "streamline-emojis": "outline",
    "flat-color-icons": "office",
}
SILHOUETTE = "silhouette"
SILHOUETTE_WEIGHT = 0.45

# What a toy-style icon draws where its name is nobody else's.
_FXEMOJI = {
    "catside": "cat", "dogside": "dog", "mouseside": "mouse", "pigside": "pig",
    "tigerside": "tiger", "dragonside": "dragon", "leopardside": "leopard", "bunnyside": "rabbit",
    "bunny": "rabbit face", "dragonhead": "dragon face", "spurtingwhale": "spouting whale",
    "hampster": "hamster", "frontfacingchick": "front-facing baby chick", "pigsnout": "pig nose",
    "monkeyhear": "hear-no-evil monkey", "monkeysee": "see-no-evil monkey",
    "monkeyspeak": "speak-no-evil monkey", "heartblue": "blue heart", "heartgreen": "green heart",
    "heartpurple": "purple heart", "heartyellow": "yellow heart", "2hearts": "two hearts",
    "heartarrow": "heart with arrow", "chilipepper": "hot pepper", "evergreen": "evergreen tree",
    "present": "wrapped gift", "acorn": "chestnut", "bolt": "high voltage",
    "bouquetofflowers": "bouquet", "fallingleaf": "fallen leaf", "leaffluttering":
    "leaf fluttering in wind", "fishcakeswirl": "fish cake with swirl", "whitestar": "star",
    "sunrays": "sun", "stormcloud": "cloud with rain", "sunraincloud": "sun behind rain cloud",
    "snowmountains": "snow-capped mountain", "toykotower": "Tokyo tower", "tennisball": "tennis",
    "studiomic": "studio microphone", "bullhorn": "loudspeaker", "cellphone": "mobile phone",
    "personalcomputer": "laptop", "folder": "file folder", "openfolder": "open file folder",
    "openlock": "unlocked", "lockandkey": "locked with key", "ringingbell": "bell",
    "bellcancellation": "bell with slash", "heels": "high-heeled shoe", "mensshoe": "man's shoe",
    "sandals": "woman's sandal", "womansshirt": "woman's clothes", "mansshirt": "t-shirt",
    "forkknife": "fork and knife", "turban": "person wearing turban", "confetti": "confetti ball",
    "crying": "crying face", "loudlycrying": "loudly crying face", "winking": "winking face",
    "smallfrown": "slightly frowning face", "smallsmile": "slightly smiling face",
    "frown": "frowning face", "grinwide": "grinning face", "grintears": "face with tears of joy",
    "grinsquint": "grinning squinting face", "grinsweat": "grinning face with sweat",
    "screamfear": "face screaming in fear", "anguish": "anguished face",
    "kissclosedeyes": "kissing face with closed eyes", "kisseyes": "kissing face with smiling eyes",
    "smiletongue": "face with tongue", "tongueoutwink": "winking face with tongue",
    "devilhorns": "smiling face with horns", "japaneseangrymask": "ogre",
    "speechbubble": "speech balloon", "thoughtbaloon": "thought balloon",
    "opticaldisc": "optical disk",
    "floppydisk2": "floppy disk", "leftmagnifyingglass": "magnifying glass tilted left",
    "rightmagnifyingglass": "magnifying glass tilted right", "rightspeaker": "speaker low volume",
    "rightspeaker3soundwaves": "speaker high volume", "europeafricaglobe":
    "globe showing Europe-Africa", "americasglobe": "globe showing Americas",
    "asiaaustraliaglobe": "globe showing Asia-Australia", "high5": "raised hand",
    "flexbicep": "flexed biceps", "fistedhand": "raised fist", "housebuilding": "house",
    "highspeedtrainbulletnose": "bullet train", "warningsign": "warning",
    "waningbibbousmoon": "waning gibbous moon",
}  # fmt: skip

_OFFICE = {
    "alarm-clock": "alarm clock", "binoculars": "pair of binoculars", "bookmark": "bookmark",
    "briefcase": "briefcase", "businessman": "businessman", "businesswoman": "businesswoman",
    "calculator": "calculator", "calendar": "calendar", "camcorder": "video camera",
    "camera": "camera", "cell-phone": "mobile phone", "clapperboard": "clapper board",
    "clock": "clock", "compact-camera": "compact camera", "empty-trash": "trash can",
    "factory": "factory", "film-reel": "film reel", "filing-cabinet": "file cabinet",
    "folder": "file folder", "opened-folder": "open file folder", "globe": "globe",
    "graduation-cap": "graduation cap", "headset": "headset", "home": "house",
    "idea": "light bulb", "key": "key", "landscape": "landscape", "night-landscape":
    "night landscape", "lock": "padlock", "music": "musical note", "old-time-camera":
    "old camera", "phone": "telephone", "picture": "framed picture", "pie-chart": "pie chart",
    "puzzle": "puzzle piece", "reading": "person reading", "ruler": "ruler", "safe": "safe",
    "search": "magnifying glass tilted left", "settings": "gear", "shop": "shop",
    "speaker": "loudspeaker", "webcam": "webcam", "full-battery": "battery",
    "customer-support": "person with headset", "video-projector": "film projector",
    "bar-chart": "bar chart", "package": "package",
}  # fmt: skip

_DROPPED_SUBGROUPS = {
    "keypad characters", "country flags", "subdivision flags", "skin tones", "hair styles",
}  # fmt: skip
_DROPPED = re.compile(
    r"japanese|regional indicator|symbol for|^input |trade mark|registered|copyright"
)

_SUBGROUP_WEIGHTS = {
    "family": 0.1, "roles & careers": 0.45, "gestures": 0.4, "activities": 0.4, "athletics": 0.4,
    "resting": 0.4, "fantasy": 0.5, "people": 0.6, "hand signs": 0.6, "fingers open": 0.6,
    "fingers closed": 0.6, "finger pointing": 0.6, "hands": 0.6, "hand props": 0.6,
    "shapes & colors": 1.0, "other flags": 0.3, "warning symbols": 0.5,
}  # fmt: skip
_GROUP_WEIGHTS = {"symbols": 0.3, "people & body": 0.7}
MEDIUM = 3
TONE_WEIGHT = 0.35


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One picture to be: where its drawing is and what is known of it before it is drawn.

    ``colour`` is the colour word of a repainted drawing, with ``shade`` its hexadecimal value;
    ``emoji`` the character it draws, if it is one.
    """

    source: str
    icon: str
    style: str
    concept: str
    weight: float
    emoji: Emoji | None = None
    toned: bool = False
    colour: str = ""
    shade: str = ""

    @property
    def id(self) -> str:
        """A name for the picture that no other picture has and that never changes."""
        return f"{self.source}/{self.icon}" + (f"/{self.colour}" if self.colour else "")


def emoji_weight(emoji: Emoji) -> float:
    """The sampling weight of a character: things count more than signs, roles and families."""
    weight = _SUBGROUP_WEIGHTS.get(emoji.subgroup, _GROUP_WEIGHTS.get(emoji.group, 1.0))
    if emoji.group == "people & body" and re.match(r"(wo)?m[ae]n ", emoji.name):
        weight *= 0.5
    if emoji.subgroup == "time" and re.search("o'clock|thirty", emoji.name):
        weight = 0.3
    return weight * (TONE_WEIGHT if emoji.tones else 1.0)


def wanted(emoji: Emoji) -> bool:
    """Whether a character belongs in the set: no letters, national flags or surplus skin tones."""
    if emoji.tones not in ((), (MEDIUM,)) or not emoji.group:
        return False
    return emoji.subgroup not in _DROPPED_SUBGROUPS and not _DROPPED.search(emoji.name)


def _emoji_entry(source: str, icon: str, emoji: Emoji, copies: int = 1) -> Entry:
    return Entry(
        source=source,
        icon=icon,
        style=STYLES[source],
        concept=emoji.name,
        weight=emoji_weight(emoji) / copies,
        emoji=emoji,
        toned=bool(emoji.tones),
    )


def _named(collection: Collection, names: Mapping[str, str], table: EmojiTable) -> Iterator[Entry]:
    for icon in sorted(collection.icons.keys() & names.keys()):
        emoji = table.find(names[icon])
        yield Entry(
            source=collection.prefix,
            icon=icon,
            style=STYLES[collection.prefix],
            concept=plain_name(names[icon]) if emoji is None else emoji.name,
            weight=0.5,
            emoji=emoji,
        )


def _icon_entries(collection: Collection, table: EmojiTable) -> Iterator[Entry]:
    """One entry for each wanted icon of an emoji set; numbered variants share their weight."""
    numbered = collection.prefix == "streamline-emojis"
    found: dict[str, Emoji] = {}
    for icon in sorted(collection.icons):
        if icon.endswith("-text"):
            continue
        name = re.sub(r"-\d$", "", icon) if numbered else icon
        if collection.prefix == "fxemoji":
            name = _FXEMOJI.get(icon, icon)
        emoji = table.find(name, collection.codepoints.get(icon))
        if emoji is not None and wanted(emoji):
            found[icon] = emoji
    copies = Counter((emoji.name, emoji.tones) for emoji in found.values())
    for icon, emoji in found.items():
        yield _emoji_entry(collection.prefix, icon, emoji, copies[emoji.name, emoji.tones])


def _silhouettes(collections: Mapping[str, Collection], table: EmojiTable) -> Iterator[Entry]:
    for noun, icons in NOUNS.items():
        for prefix, icon in icons:
            if prefix not in collections or icon not in collections[prefix].icons:
                continue
            for colour, shades in SHADES.items():
                yield Entry(
                    source=prefix,
                    icon=icon,
                    style=SILHOUETTE,
                    concept=noun,
                    weight=SILHOUETTE_WEIGHT,
                    emoji=table.find(noun),
                    colour=colour,
                    shade=shades[len(squash(icon + colour)) % len(shades)],
                )


def select(
    collections: Mapping[str, Collection], rendered: Iterable[str], table: EmojiTable
) -> list[Entry]:
    """All entries, in an order that depends on nothing but the packages.

    ``rendered`` are the code points, as file names without ending, of the 3D renderings.
    """
    entries: list[Entry] = []
    seen: set[str] = set()
    for code in sorted(rendered):
        emoji = table.find("", code)
        if emoji is not None and wanted(emoji) and emoji.code not in seen:
            seen.add(emoji.code)
            entries.append(_emoji_entry(FLUENT_3D_SOURCE, code, emoji))
    for prefix in STYLES:
        if (collection := collections.get(prefix)) is None:
            continue
        if prefix == "flat-color-icons":
            entries += _named(collection, _OFFICE, table)
        else:
            entries += _icon_entries(collection, table)
    entries += _silhouettes(collections, table)
    return entries
