"""Icon collections as published in one JSON file a set: names, SVG text, licence and author."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipes.glyph.data.archives import read_members
from sanakit.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Icon:
    """One drawing: ``body`` is SVG content whose canvas is ``(left, top, width, height)``.

    ``zoom`` is how much larger than on its canvas it may be shown, so that a dot stays smaller
    than a ball.
    """

    name: str
    body: str
    canvas: tuple[float, float, float, float]
    zoom: float = 1.5


@dataclass(frozen=True, kw_only=True)
class Collection:
    """A set of icons by one author under one licence.

    ``aliases`` maps other names to icon names; ``codepoints`` maps icon names to the hexadecimal
    code points of the character they draw and ``categories`` maps them to the set's own words for
    the parts of the set they are in, where the set says so.
    """

    prefix: str
    title: str
    author: str
    author_url: str
    licence: str
    licence_url: str
    icons: Mapping[str, Icon]
    aliases: Mapping[str, str]
    codepoints: Mapping[str, str]
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def _by_icon(categories: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, ...]]:
    """Categories with their icons, as icons with their categories."""
    found: dict[str, tuple[str, ...]] = {}
    for category, names in categories.items():
        for name in names:
            found[name] = (*found.get(name, ()), category)
    return found


def parse_collection(prefix: str, data: Mapping[str, Any], info: Mapping[str, Any]) -> Collection:
    """Read a set from its JSON and its entry in the list of collections; hidden icons are left out.

    Raises:
        DataError: a field every set has is absent.
    """
    side = data.get("width", 16), data.get("height", 16)
    try:
        icons = {
            name: Icon(
                name=name,
                body=icon["body"],
                canvas=(
                    float(icon.get("left", data.get("left", 0))),
                    float(icon.get("top", data.get("top", 0))),
                    float(icon.get("width", side[0])),
                    float(icon.get("height", side[1])),
                ),
            )
            for name, icon in data["icons"].items()
            if not icon.get("hidden")
        }
        author, licence = info["author"], info["license"]
        return Collection(
            prefix=prefix,
            title=info["name"],
            author=author["name"],
            author_url=author.get("url", ""),
            licence=licence.get("spdx") or licence["title"],
            licence_url=licence.get("url", ""),
            icons=icons,
            aliases={name: alias["parent"] for name, alias in data.get("aliases", {}).items()},
            codepoints={name: code for code, name in data.get("chars", {}).items()},
            categories=_by_icon(data.get("categories", {})),
        )
    except KeyError as error:
        raise DataError(f"icon set {prefix!r} has no field {error}") from error


def read_collections(archive: Path, prefixes: Iterable[str]) -> dict[str, Collection]:
    """The named sets of an archive.

    Raises:
        DataError: the archive or a named set is unreadable or absent.
    """
    files = {prefix: f"package/json/{prefix}.json" for prefix in prefixes}
    listing = "package/collections.json"
    wanted = {listing, *files.values()}
    members = read_members(archive, wanted.__contains__)
    if missing := sorted(wanted - members.keys()):
        raise DataError(f"{archive} does not hold {', '.join(missing)}")
    infos = json.loads(members[listing])
    return {
        prefix: parse_collection(prefix, json.loads(members[file]), infos[prefix])
        for prefix, file in files.items()
    }


def svg_text(
    icon: Icon,
    view: tuple[float, float, float, float] | None = None,
    *,
    size: int,
    colour: str | None = None,
) -> str:
    """A whole SVG document of ``size`` pixels a side that shows the ``view`` of an icon's canvas.

    The icon is clipped to its own canvas, also where the view is larger. ``view`` is
    ``(left, top, width, height)`` in the icon's units, the canvas by default, and is shown whole
    and centred; ``colour`` replaces ``currentColor``.
    """
    left, top, width, height = icon.canvas
    box = icon.canvas if view is None else view
    body = icon.body if colour is None else icon.body.replace("currentColor", colour)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{size}" height="{size}" viewBox="{box[0]:g} {box[1]:g} {box[2]:g} {box[3]:g}">'
        f'<svg x="{left:g}" y="{top:g}" width="{width:g}" height="{height:g}" '
        f'viewBox="{left:g} {top:g} {width:g} {height:g}">{body}</svg></svg>'
    )
