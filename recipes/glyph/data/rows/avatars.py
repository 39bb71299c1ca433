"""Avatars: portraits put together from parts, whose captions say exactly which parts."""

from __future__ import annotations

import importlib.resources
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.glyph.data.archives import read_members
from recipes.glyph.data.attribution import Credit
from recipes.glyph.data.captions import article, choice, unique
from recipes.glyph.data.iconify import Icon
from recipes.glyph.data.packages import DICEBEAR, Package
from recipes.glyph.data.rows.avatar_words import FIGURES, avatar_parts, colour_word
from recipes.glyph.data.rows.row import Art
from recipes.glyph.data.split import fraction
from recipes.glyph.data.styles import STYLE_WORDS
from sanakit.errors import DataError

SCRIPT = "avatars.mjs"
CORE = "core"
NODE_SECONDS = 300  # a minute is plenty; it ends a node that hangs

# Options of the styles: parts are drawn more often than by default, so that their words are learnt,
# and nothing is drawn behind a portrait.
_OPTIONS: Mapping[str, Mapping[str, object]] = {
    "adventurer": {"glassesProbability": 30, "earringsProbability": 20, "featuresProbability": 20},
    "big-ears": {},
    "big-smile": {"accessoriesProbability": 60},
    "croodles": {"beardProbability": 25, "mustacheProbability": 25},
    "dylan": {"backgroundColor": ["transparent"], "facialHairProbability": 25},
    "fun-emoji": {"radius": 50},
    "lorelei": {
        "beardProbability": 20, "earringsProbability": 25, "frecklesProbability": 20,
        "glassesProbability": 35, "hairAccessoriesProbability": 20,
    },
    "micah": {"facialHairProbability": 30, "glassesProbability": 35},
    "miniavs": {"glassesProbability": 35, "mustacheProbability": 25},
    "notionists": {
        "beardProbability": 30, "glassesProbability": 35, "gestureProbability": 35,
        "bodyIconProbability": 0,
    },
    "open-peeps": {
        "accessoriesProbability": 40, "facialHairProbability": 30, "maskProbability": 10,
    },
    "personas": {"facialHairProbability": 30},
    "pixel-art": {
        "accessoriesProbability": 20, "beardProbability": 25, "glassesProbability": 35,
        "hatProbability": 30,
    },
    "thumbs": {"backgroundColor": ["transparent"]},
    "toon-head": {"beardProbability": 35},
}  # fmt: skip
# Styles with few pictures that differ, as a part of the others' number.
_PARTS = {"thumbs": 0.2, "fun-emoji": 0.5}
PLAIN_WEIGHT = 0.2  # portraits of which nothing can be said but that they are portraits
_DOCUMENT = re.compile(r"<svg\b[^>]*?viewBox=\"([\d. -]+)\"([^>]*)>(.*)</svg>\s*", re.DOTALL)
_KEPT = re.compile(r"\b(?:fill|shape-rendering)=\"[\w#-]+\"")
_METADATA = re.compile(r"<metadata.*?</metadata>", re.DOTALL)
_SAFE = re.compile(r"package/(?:[\w-]+/)*[\w.-]+\.(?:js|json)")


def _place(archives: Mapping[Package, Path], folder: Path) -> None:
    """Lay the packages' code where Node finds it, and the script beside it.

    Raises:
        DataError: an archive is unreadable.
    """
    for style, package in DICEBEAR.items():
        home = folder / "node_modules" / "@dicebear" / style
        members = read_members(archives[package], lambda name: bool(_SAFE.fullmatch(name)))
        for name, data in members.items():
            path = home / name.removeprefix("package/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    script = importlib.resources.files("recipes.glyph.data.rows").joinpath(SCRIPT)
    (folder / SCRIPT).write_bytes(script.read_bytes())


def run_node(archives: Mapping[Package, Path], counts: Mapping[str, int]) -> Iterator[Any]:
    """What the script writes for so many avatars of each style, one object at a time.

    Raises:
        DataError: Node.js is not installed, or the script fails.
    """
    node = shutil.which("node")
    if node is None:
        raise DataError(
            "avatars are drawn by Node.js, which is not installed",
            hint="install Node.js 18 or later, or build `--without avatars`",
        )
    styles = {
        style: {"count": count, "options": dict(_OPTIONS[style])} for style, count in counts.items()
    }
    with tempfile.TemporaryDirectory(prefix="avatars-") as name:
        folder = Path(name)
        _place(archives, folder)
        with (folder / "avatars.jsonl").open("wb") as out:
            try:
                result = subprocess.run(
                    [node, SCRIPT],
                    input=json.dumps({"styles": styles}).encode(),
                    cwd=folder,
                    stdout=out,
                    stderr=subprocess.PIPE,
                    check=False,
                    timeout=NODE_SECONDS,
                )
            except subprocess.TimeoutExpired as error:
                raise DataError(
                    f"drawing avatars took more than {NODE_SECONDS} s",
                    hint="ask for fewer, or build `--without avatars`",
                ) from error
        if result.returncode != 0:
            last = result.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
            raise DataError(
                f"drawing avatars ended with status {result.returncode}: {' '.join(last)}",
                hint="Node.js 18 or later is needed",
            )
        with (folder / "avatars.jsonl").open("rb") as lines:
            for line in lines:
                yield json.loads(line)


def avatar_icon(name: str, svg: str) -> Icon:
    """The drawing in an SVG document as these styles write it.

    Raises:
        DataError: it is not written so.
    """
    match = _DOCUMENT.fullmatch(svg)
    if match is None:
        raise DataError(f"avatar {name} is no SVG document of the known form: {svg[:80]!r}")
    left, top, width, height = (float(part) for part in match[1].split())
    kept = " ".join(_KEPT.findall(match[2]))
    body = f"<g {kept}>{_METADATA.sub('', match[3])}</g>"
    return Icon(name=name, body=body, canvas=(left, top, width, height))


def _listed(things: list[str]) -> str:
    """Words as a list in a sentence: commas, and "and" before the last."""
    return " and ".join([", ".join(things[:-1]), things[-1]] if len(things) > 1 else things)


def avatar_captions(
    style: str, extra: Mapping[str, object], *, key: str
) -> tuple[str, tuple[str, ...]]:
    """The concept of an avatar, its most telling parts, and its captions, all of them exact."""
    parts = avatar_parts(style, extra)
    figure = "person"
    if style in FIGURES:
        figure, attribute = FIGURES[style]
        figure = f"{colour_word(str(extra.get(attribute)), 'wear')} {figure}".strip()
    telling = [*parts.get("hair", []), *parts.get("hat", [])]
    telling += [*parts.get("glasses", []), *parts.get("beard", [])]
    rest = [*parts.get("look", []), *parts.get("extra", []), *parts.get("skin", [])]
    first = telling[:2] or rest[:1]
    concept = f"{figure} with {_listed(first)}" if first else figure
    wear = f", wearing {_listed(parts['wear'])}" if "wear" in parts else ""
    name = article(figure)
    every = telling + rest
    some = sorted(every, key=lambda part: fraction(f"{key}:{part}"))[:2]
    words = choice(STYLE_WORDS[style], f"style:{key}")
    other = next(one for one in STYLE_WORDS[style] if one != words)
    return concept, unique(
        (
            article(concept) + wear,
            f"{name} with {_listed(every)}{wear}, {words}" if every else f"{name}{wear}, {words}",
            f"{article(other)} of {name} with {_listed(some)}" if some else f"{other} of {name}",
            f"{concept}, {other}",
            ", ".join([f"{words}", *some, *parts.get("wear", [])]),
        )
    )


def _art(row: Mapping[str, Any]) -> Art:
    style, seed = str(row["style"]), int(row["seed"])
    key = f"dicebear-{style}/{seed}"
    concept, captions = avatar_captions(style, row["extra"], key=key)
    return Art(
        id=key,
        source=f"dicebear-{style}",
        style=style,
        concept=concept,
        captions=captions,
        variant=style,
        weight=1.0 if " with " in concept else PLAIN_WEIGHT,
        icon=avatar_icon(key, row["svg"]),
        colour=None,
    )


def _credit(style: str, meta: Mapping[str, Any]) -> Credit:
    return Credit(
        source=f"dicebear-{style}",
        title=f"{meta['title']}, remixed by DiceBear",
        author=meta["creator"],
        author_url=meta.get("homepage") or meta.get("source", ""),
        licence=meta["license"]["name"],
        licence_url=meta["license"]["url"],
        package=DICEBEAR[style],
    )


@dataclass(frozen=True, kw_only=True)
class AvatarRow:
    """Portraits in fifteen styles; ``count`` is about how many in all."""

    count: int = 30_000
    name: str = "avatars"
    share: float = 0.12
    packages: tuple[Package, ...] = tuple(DICEBEAR.values())

    def counts(self) -> dict[str, int]:
        """How many avatars of each style; the sum is ``count`` but for rounding."""
        whole = sum(_PARTS.get(style, 1.0) for style in _OPTIONS)
        return {
            style: max(1, round(self.count * _PARTS.get(style, 1.0) / whole)) for style in _OPTIONS
        }

    def read(self, archives: Mapping[Package, Path]) -> tuple[list[Art], list[Credit]]:
        """All avatars, style by style; the same number gives the same avatars.

        Raises:
            DataError: an archive is unreadable, or Node.js is absent or fails.
        """
        art: list[Art] = []
        credits: list[Credit] = []
        for row in run_node(archives, self.counts()):
            if "meta" in row:
                credits.append(_credit(row["style"], row["meta"]))
            else:
                art.append(_art(row))
        return art, credits
