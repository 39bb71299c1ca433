"""Which names are nouns for things: WordNet's kinds tell an otter from an overview."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from recipes.glyph.data.archives import read_members
from recipes.glyph.data.word_lists import word_list
from sanakit.errors import DataError

INDEX, DATA = "package/dict/index.noun", "package/dict/data.noun"
OTHERS = ("package/dict/index.adj", "package/dict/index.adv", "package/dict/index.verb")

# Lexicographer files of WordNet (lexnames(5WN)) whose nouns one can draw.
THINGS: Mapping[int, str] = {
    5: "animal", 6: "artifact", 8: "body", 13: "food", 17: "object", 18: "person", 19: "weather",
    20: "plant", 25: "shape",
}  # fmt: skip
COUNTABLE = frozenset(THINGS.values()) - {"weather"}

_HEAD_ENDS = re.compile(
    r" (with|of|in|on|and|behind|showing|wearing|over|under|above|beside|for|at|without|facing"
    r"|from|to|within|holding|inside|between) "
)
# Nouns whose first sense in WordNet is not what a picture of that name shows, or is no thing.
_NO_THING_WORDS = word_list("nouns-no-thing-words")
_NO_THINGS = frozenset(_NO_THING_WORDS.split())


_SMALL = "a an the and or of on in with without at by for from to up down under over into no not"
_FUNCTION_WORDS = frozenset(_SMALL.split())


class NounTable:
    """The first sense of every noun of WordNet, as the kind of thing it is; and all its words."""

    def __init__(self, kinds: Mapping[str, str], words: Iterable[str] = ()) -> None:
        self.kinds = kinds
        self.words = frozenset(words) | _FUNCTION_WORDS

    def kind(self, name: str) -> str:
        """The kind of thing that a name as a whole names, singular or plural; else empty."""
        for form in _singulars(name):
            if form in self.kinds:
                return self.kinds[form]
        return ""

    def head_kind(self, name: str) -> str:
        """The kind of a name's last word before any "with", "of" or the like; else empty."""
        head = _HEAD_ENDS.split(name)[0]
        return self.kind(head) or self.kind(head.split()[-1])

    def is_english(self, name: str) -> bool:
        """Whether every word of a name is in the dictionary, whatever it means."""
        return all(not self.words.isdisjoint(_singulars(word)) for word in name.split())

    def is_plain(self, name: str) -> bool:
        """Whether a whole name is a noun for a thing and no word of interfaces."""
        return name not in _NO_THINGS and bool(self.kind(name))


def _singulars(name: str) -> list[str]:
    """A name and what it may be the plural of."""
    forms = [name]
    if name.endswith("ies"):
        forms.append(name[:-3] + "y")
    if name.endswith("ves"):
        forms += [name[:-3] + "f", name[:-3] + "fe"]
    if name.endswith("es"):
        forms.append(name[:-2])
    if name.endswith("s") and not name.endswith("ss"):
        forms.append(name[:-1])
    return forms


@functools.lru_cache(maxsize=1)
def read_nouns(archive: Path) -> NounTable:
    """The table of the nouns in the archive of WordNet.

    Source: wndb(5WN): ``lemma n synset_cnt p_cnt [symbol...] sense_cnt tagsense_cnt offset...``,
    with the most frequent sense first, and ``offset lex_filenum ...`` in the data.

    Raises:
        DataError: the archive is unreadable or lacks the nouns.
    """
    members = read_members(archive, (INDEX, DATA, *OTHERS).__contains__)
    if missing := sorted({INDEX, DATA, *OTHERS} - members.keys()):
        raise DataError(f"{archive} does not hold {', '.join(missing)}")
    files = {
        line[:8]: int(line[9:11])
        for line in members[DATA].decode("utf-8").splitlines()
        if not line.startswith("  ")
    }
    words = {
        line.split(" ", 1)[0]
        for name in (INDEX, *OTHERS)
        for line in members[name].decode("utf-8").splitlines()
    }
    kinds: dict[str, str] = {}
    for line in members[INDEX].decode("utf-8").splitlines():
        if line.startswith("  "):
            continue
        fields = line.split()
        first = fields[4 + int(fields[3]) + 2]
        if (kind := THINGS.get(files[first])) is not None:
            kinds[fields[0].replace("_", " ")] = kind
    return NounTable(kinds, words)
