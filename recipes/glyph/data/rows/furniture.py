"""Furniture and household things: small renderings of 3D models, nearly as a photo shows them."""

from __future__ import annotations

import io
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from recipes.glyph.data.archives import each_member
from recipes.glyph.data.attribution import EMOJIBASE_CREDIT, Credit
from recipes.glyph.data.captions import article, captions
from recipes.glyph.data.emoji import EmojiTable, plain_name, read_emoji
from recipes.glyph.data.everyday import common_concept
from recipes.glyph.data.packages import EMOJIBASE, SWEET_HOME, Package
from recipes.glyph.data.rows.row import Art
from recipes.glyph.data.suitable import is_suitable
from sanakit.errors import DataError

FOLDER, ENDING = "usr/share/sweethome3d/furniture/", ".sh3f"
CATALOG = "PluginFurnitureCatalog.properties"
STYLE = "render"
MAX_PICTURE = 4 << 20  # bytes of one picture inside a catalogue

# Catalogue -> licence and its address, as the LICENSE.TXT inside says.
_LICENCES = {
    "BlendSwap-CC-0": ("CC0-1.0", "https://creativecommons.org/publicdomain/zero/1.0/"),
    "BlendSwap-CC-BY": ("CC-BY-3.0", "https://creativecommons.org/licenses/by/3.0/"),
    "KatorLegaz": ("CC-BY-3.0", "https://creativecommons.org/licenses/by/3.0/us/"),
    "Reallusion": ("CC-BY-3.0", "https://creativecommons.org/licenses/by/3.0/us/"),
    "Scopia": ("CC-BY-3.0", "https://creativecommons.org/licenses/by/3.0/"),
}
_OWNERS = {
    "BlendSwap-CC-0": "the contributors named below",
    "BlendSwap-CC-BY": "the contributors named below",
    "KatorLegaz": "Andrew Kator & Jennifer Legaz",
    "Reallusion": "Reallusion",
    "Scopia": "Scopia Visual Interfaces Systems and Emmanuel Puybaret / eTeks",
}
# Parts of buildings, which end where the model ends, and people in everyday clothes.
_CATEGORY_WEIGHTS = {"Doors and windows": 0.5, "Characters": 0.5, "Staircases": 0.5}
_NAMES = {
    "female": "woman", "male": "man", "holding male": "man holding something", "bath": "bathtub",
    "children game": "playground slide", "table and chairs": "table with chairs",
    "tv unit": "tv stand", "pc": "desktop computer", "hi fi": "hi-fi system",
    "socket": "sock", "barnum": "gazebo", "toilets unit": "toilet",
    "winchester sofa": "chesterfield sofa", "induction cooker zones": "induction cooker",
    "ford focus": "car", "apple ibook": "laptop", "child hut": "playground hut with a slide",
}  # fmt: skip
_NO_TAGS = {"blend", "swap", "blend swap", "scpts", "adjustable", "human", "people"}


def read_properties(data: bytes) -> list[dict[str, str]]:
    """The entries of a catalogue in Java's properties format: "key#number=value" lines.

    The format is Latin-1 with escapes for other letters; entries come in the order of the file.
    """
    entries: dict[str, dict[str, str]] = {}
    for line in data.decode("latin-1").splitlines():
        match = re.fullmatch(r"\s*(\w+)#(\d+)\s*[=:]\s*(.*?)\s*", line)
        if match:
            text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda code: chr(int(code[1], 16)), match[3])
            entries.setdefault(match[2], {})[match[1]] = text
    return list(entries.values())


def _items(catalogue: str, data: bytes) -> Iterator[tuple[dict[str, str], bytes]]:
    """The entries of a .sh3f file, a zip archive, with their pictures.

    Raises:
        DataError: it is no such archive.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for entry in read_properties(archive.read(CATALOG)):
                name = entry.get("icon", "").lstrip("/")
                if name.endswith(".png") and archive.getinfo(name).file_size <= MAX_PICTURE:
                    yield entry, archive.read(name)
    except (zipfile.BadZipFile, KeyError) as error:
        raise DataError(
            f"{catalogue} in the furniture package is damaged: {error}",
            hint="delete the package and fetch it again",
        ) from error


def item_name(name: str) -> str:
    """What a model is called, as plain words."""
    plain = plain_name(re.sub(r"\s*\(.*?\)|\b\d+\b", "", name))
    return _NAMES.get(plain, plain)


def _art(catalogue: str, entry: Mapping[str, str], picture: bytes, table: EmojiTable) -> Art | None:
    name = item_name(entry.get("name", ""))
    if not name or not name.isascii() or not is_suitable(name):
        return None
    concept = common_concept(name, table)
    source = f"sweethome3d-{catalogue.lower()}"
    key = f"{source}/{entry['icon'].rpartition('/')[2].removesuffix('.png')}"
    tags = [tag.strip().lower() for tag in entry.get("tags", "").split(",")]
    person = entry.get("category") == "Characters"
    part = entry.get("category") in _CATEGORY_WEIGHTS
    return Art(
        id=key,
        source=source,
        style=STYLE,
        concept=concept,
        captions=captions(
            concept, STYLE, key=key, tags=[tag for tag in tags if tag not in _NO_TAGS]
        ),
        variant=STYLE,
        weight=_CATEGORY_WEIGHTS.get(entry.get("category", ""), 1.0),
        encoded=picture,
        colour=None if person or article(concept) == concept else "",
        cutout=not part and article(concept) != concept,
    )


@dataclass(frozen=True, kw_only=True)
class FurnitureRow:
    """Renderings of furniture, appliances, plants, vehicles and people, 128 pixels a side."""

    name: str = "furniture"
    share: float = 0.03
    packages: tuple[Package, ...] = (SWEET_HOME, EMOJIBASE)

    def read(self, archives: Mapping[Package, Path]) -> tuple[list[Art], list[Credit]]:
        """All models, catalogue by catalogue, each with its author among the credits.

        Raises:
            DataError: an archive is unreadable.
        """
        table = read_emoji(archives[EMOJIBASE])
        art: dict[str, Art] = {}
        credits: list[Credit] = []

        def wanted(name: str) -> bool:
            return name.startswith(FOLDER) and name.endswith(ENDING)

        for member, data in each_member(archives[SWEET_HOME], wanted):
            catalogue = member[len(FOLDER) : -len(ENDING)]
            works: Counter[str] = Counter()
            for entry, picture in _items(catalogue, data):
                if (one := _art(catalogue, entry, picture, table)) is not None:
                    art.setdefault(one.id, one)
                    works[f"{entry['name']} by {entry.get('creator') or 'unknown'}"] += 1
            licence, address = _LICENCES[catalogue]
            credits.append(
                Credit(
                    source=f"sweethome3d-{catalogue.lower()}",
                    title=f"Sweet Home 3D models, {catalogue}",
                    author=_OWNERS[catalogue],
                    author_url="",
                    licence=licence,
                    licence_url=address,
                    package=SWEET_HOME,
                    works=tuple(sorted(works)),
                )
            )
        return list(art.values()), [*credits, EMOJIBASE_CREDIT]
