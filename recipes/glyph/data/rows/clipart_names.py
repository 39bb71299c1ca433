"""What a piece of clip art shows: from its title, file name, key words or folder, in English."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from recipes.glyph.data.colours import WORDS
from recipes.glyph.data.emoji import EmojiTable
from recipes.glyph.data.everyday import is_thing
from recipes.glyph.data.nouns import NounTable
from recipes.glyph.data.word_lists import word_list

# Folders without pictures of things: themes of file managers, cards, flags, patterns, maps.
_DROPPED = re.compile(
    r"(shapes/stars|shapes/arrows|computer/icons/|computer/buttons|computer/folders|special"
    r"|computer/diagrams|computer/network|decorations|logos|buttons|office/folders)"
)
_DROPPED_PARTS = {
    "flags", "semaphore", "led", "jigsaw", "cards", "roadsigns", "map_symbols", "patterns",
    "gradients", "duplicates", "examples", "callouts", "flowchart", "buttons", "pantyhose",
}  # fmt: skip

# The thing that a folder is full of.
_FOLDERS = {
    "amphibian": "frog",
    "birds": "bird", "bugs": "insect", "dinosaurs": "dinosaur", "horses": "horse", "dogs": "dog",
    "housecats": "cat", "bears": "bear", "penguin": "penguin", "flowers": "flower", "trees": "tree",
    "evergreen": "evergreen tree", "homes": "house", "hats": "hat", "books": "book",
    "clocks": "clock", "telephone": "telephone", "bulb": "light bulb", "smilies": "smiley face",
    "stickmen": "stick figure", "hummers": "off-road car", "desserts": "dessert",
    "beverages": "drink", "mammals": "animal", "animals": "animal", "weapons": "weapon",
    "boating": "boat", "battery": "battery", "people": "person", "fish": "fish",
}  # fmt: skip

# Titles that say who made a set and not what is drawn: the name of the file says more.
_BOILERPLATE = re.compile(
    r"clipart by|various cliparts|etiquette|simple arrows|flat icon|lemon svg|submission|sibmission"
    r"|homes clipart|menu clip art|icon ?set|icon-theme|various|unknown|untitled|^$",
    re.IGNORECASE,
)
_AUTHORS = re.compile(
    r"\b(architetto.*|archite.*|arch|ganson|benji.*|peterm|nicu.*|rollandin.*|jarno.*|juliane.*"
    r"|jean ?victor.*|gerald.*|jon phil.*|mateya|openclipart|aj|svg|clip ?art|clipart|bw|inkscape"
    r"|mo|susan park.*|lumen.*|francesc.*|franc|rpswb|kurt.*|erich.*|joeseph.*|hash)\b"
)
_NOISE = re.compile(
    r"\b(icons?|symbols?|hotel|hour room|card figures?|mm|simple|drawn with straight lines"
    r"|contour|outlines?|silhouettes?|silhouet"
    r"|clip ?art|drawing|sketch|stylized|stylised|illustration|cartoon|style|collection|various"
    r"|another|yet|sign of|version|vector|graphic|template|on transparent|b w|sample|example)\b"
)
_BLACK_AND_WHITE = re.compile(r"\(?b and w\)?|_bw\b|\bbw\b|black.and.white", re.IGNORECASE)

# Words of Italian, French and others, words run together, and nouns WordNet knows otherwise.
_WORDS = word_list("clipart-names-words")


def _table(text: str) -> dict[str, str]:
    rows = (row.partition(" ") for row in re.split(r"\s*[|\n]\s*", text.strip()))
    return {word: meaning.replace("_", " ") for word, _, meaning in rows}


_MEANINGS: Mapping[str, str] = _table(_WORDS)
# Kinds of things a single key word names surely enough.
_SURE_KINDS = {"animal", "artifact", "food", "plant"}
_GENERAL = word_list("clipart-names-general")
_TOO_GENERAL = frozenset(_GENERAL.split())
MOST_WORDS = 6
NO_TAGS = frozenset({"hash", "unsorted", "menu", "icon", "symbol", "signs", "various"})


def wanted_folder(folder: str) -> bool:
    """Whether a folder of the package holds pictures of things."""
    return not (_DROPPED.match(folder) or _DROPPED_PARTS & set(folder.split("/")))


def is_black_and_white(title: str, file: str) -> bool:
    """Whether the title or the name of the file says that a picture has no colours."""
    return bool(_BLACK_AND_WHITE.search(title) or _BLACK_AND_WHITE.search(file))


def cleaned(text: str) -> str:
    """A title or file name as plain words, without numbers, authors and talk of clip art."""
    text = re.sub(r"\(.*?\)|&\w+;", " ", text.lower())
    text = re.sub(r"(?<=[a-z])'s?\b", "", text)
    text = re.sub(r"[^a-z ]", " ", text)
    text = _NOISE.sub(" ", _AUTHORS.sub(" ", " ".join(text.split())))
    return " ".join(word for word in text.split() if len(word) > 1 or word == "a")


def _translated(words: Sequence[str]) -> str:
    return next((_MEANINGS[word] for word in words if word in _MEANINGS), "")


def clipart_name(
    folder: str,
    file: str,
    title: str,
    keywords: Sequence[str],
    nouns: NounTable,
    table: EmojiTable,
) -> tuple[str, bool]:
    """The thing shown and whether its own title says so; empty if nothing in English is known."""
    foreign = bool(re.search(r"archit|rollandin|_fra_|franc", f"{file} {title.lower()}"))
    texts = [file] if _BOILERPLATE.search(title) else [title, file]
    for text in texts:
        name = cleaned(text)
        words = name.split()
        if not words or len(words) > MOST_WORDS:
            continue
        if meaning := _translated(words):
            return meaning, True
        known = is_thing(name, table) or (nouns.head_kind(name) and nouns.is_english(name))
        if known and not foreign and not set(words) <= _TOO_GENERAL:
            return name, True
    for keyword in keywords:
        name = cleaned(keyword)
        if (
            nouns.is_plain(name)
            and nouns.kind(name) in _SURE_KINDS
            and name not in _TOO_GENERAL
            and name not in WORDS
        ):
            return name, False
    parts = [part for part in reversed(folder.split("/")) if part in _FOLDERS]
    return (_FOLDERS[parts[0]], False) if parts else ("", False)
