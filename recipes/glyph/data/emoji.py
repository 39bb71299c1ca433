"""One dictionary of emoji: which character an icon of any set draws, under one common name."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.glyph.data.archives import read_members
from sanakit.errors import DataError

DATA = "package/en/data.json"
MESSAGES = "package/en/messages.json"
SHORTCODES = "package/en/shortcodes/"

_TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}


@dataclass(frozen=True, kw_only=True)
class Emoji:
    """A character: ``name`` is its plain lower-case label, without any skin tone.

    ``tones`` are the skin tones it carries, 1 (light) to 5 (dark), one for each person drawn.
    """

    code: str
    name: str
    tags: tuple[str, ...]
    group: str
    subgroup: str
    tones: tuple[int, ...]


def canonical(code: str) -> str:
    """Code points as every set can agree on: lower case, no variation selector, no padding."""
    parts = [part.lower().lstrip("0") for part in re.split("[-_ ]", code)]
    return "-".join(part for part in parts if part != "fe0f")


def squash(name: str) -> str:
    """A name without case, accents, spaces and punctuation, to compare names across sets."""
    plain = unicodedata.normalize("NFKD", name.replace("&", "and")).encode("ascii", "ignore")
    return re.sub("[^a-z0-9]", "", plain.decode().lower())


def plain_name(label: str) -> str:
    """A label as words in a sentence, without accents: "woman: red hair", "woman with red hair"."""
    name = label.lower().replace("\u2019", "'")
    name = unicodedata.normalize("NFKD", name)
    name = "".join(letter for letter in name if not unicodedata.combining(letter))
    name = re.sub(r"[\u201c\u201d\u229b\"!?().*#]", "", name)
    head, _, tail = name.partition(": ")
    if tail in ("bald", "facing right"):
        name = f"{head} {'with bald head' if tail == 'bald' else tail}"
    elif tail:
        joiner = "with" if re.search("hair|beard", tail) else "of"
        name = f"{head} {joiner} {tail.replace(', ', ' and ')}"
    return " ".join(name.replace("-", " ").replace(",", "").replace("&", "and").split())


class EmojiTable:
    """Finds a character by its code points or by any of the names sets have for it."""

    def __init__(self, emoji: Iterable[tuple[Emoji, Iterable[str]]]) -> None:
        self.by_code: dict[str, Emoji] = {}
        self.by_name: dict[str, Emoji] = {}
        for one, names in emoji:
            self.by_code.setdefault(one.code, one)
            for name in names:
                self.by_name.setdefault(squash(name), one)

    def learn(self, codepoints: Mapping[str, str], aliases: Mapping[str, str]) -> None:
        """Add the names a set gives to characters; names known already keep their meaning."""
        for name, code in codepoints.items():
            if (one := self.by_code.get(canonical(code))) is not None:
                self.by_name.setdefault(squash(name), one)
        for name, parent in aliases.items():
            if (one := self.by_name.get(squash(parent))) is not None:
                self.by_name.setdefault(squash(name), one)

    def find(self, name: str, code: str | None = None) -> Emoji | None:
        """The character of an icon, by its code points if given, else by its name."""
        if code is not None and (one := self.by_code.get(canonical(code))) is not None:
            return one
        plain = squash(name)
        return self.by_name.get(plain) if plain else None  # a name in another script has no letters


def _entries(
    raw: list[dict[str, Any]], groups: Mapping[int, str], subgroups: Mapping[int, str]
) -> Iterable[tuple[Emoji, list[str]]]:
    for entry in raw:
        for form in (entry, *entry.get("skins", ())):
            tone = form.get("tone", ())
            tones = tuple(tone) if isinstance(tone, list) else (tone,) if tone else ()
            code = canonical(form["hexcode"])
            names = [form["label"]]
            if len(form["emoji"]) == 1:
                names.append(unicodedata.name(form["emoji"], ""))
            yield (
                Emoji(
                    code=code,
                    name=plain_name(entry["label"]),
                    tags=tuple(entry.get("tags", ())),
                    group=groups.get(entry.get("group", -1), ""),
                    subgroup=subgroups.get(entry.get("subgroup", -1), ""),
                    tones=tones,
                ),
                names,
            )


def read_emoji(archive: Path) -> EmojiTable:
    """The table of all characters in the archive, with labels, formal names and short codes.

    Raises:
        DataError: the archive is unreadable or lacks the English data.
    """
    wanted = (DATA, MESSAGES)
    members = read_members(
        archive,
        lambda name: name in wanted or (name.startswith(SHORTCODES) and name.endswith(".json")),
    )
    if missing := [name for name in wanted if name not in members]:
        raise DataError(f"{archive} does not hold {', '.join(missing)}")
    messages = json.loads(members.pop(MESSAGES))
    table = EmojiTable(
        _entries(
            json.loads(members.pop(DATA)),
            {group["order"]: group["message"] for group in messages["groups"]},
            {group["order"]: group["message"] for group in messages["subgroups"]},
        )
    )
    for name in sorted(members):
        for code, short in json.loads(members[name]).items():
            if (one := table.by_code.get(canonical(code))) is not None:
                for word in [short] if isinstance(short, str) else short:
                    table.by_name.setdefault(squash(word), one)
    return table
