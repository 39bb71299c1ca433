"""Two rows of a few drawings, read from a file that stands for a package."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sanakit.data.glyph.attribution import Credit
from sanakit.data.glyph.iconify import Icon
from sanakit.data.glyph.packages import Package
from sanakit.data.glyph.rows.row import Art
from sanakit.data.glyph.shades import SHADES
from sanakit.data.stages import sha256_of

CANVAS = (0.0, 0.0, 32.0, 32.0)
DISC = '<circle cx="16" cy="16" r="{r}" fill="{fill}"/>'
FRUIT = ("red apple", "green pear", "plum", "lime", "cherry")
PAINTED = ("circle", "ball")


def cutout_file(kind: str) -> bytes:
    """A red square of 32 on 40 pixels, as a picture file with alpha."""
    rgba = np.zeros((40, 40, 4), np.uint8)
    rgba[4:36, 4:36] = (224, 36, 45, 255)
    buffer = io.BytesIO()
    Image.fromarray(rgba).save(buffer, kind)
    return buffer.getvalue()


@dataclass(frozen=True)
class EmojiRow:
    """Discs in their own colours, two picture files, one blank drawing and one that is no SVG."""

    packages: tuple[Package, ...]
    name: str = "emoji"
    share: float = 0.6

    def read(self, archives: Mapping[Package, Path]) -> tuple[list[Art], list[Credit]]:
        fills = json.loads(archives[self.packages[0]].read_text())
        bodies = {
            **{name: DISC.format(r=10 + i, fill=fills[i]) for i, name in enumerate(FRUIT)},
            "cloud": "<g/>",
            "rocket": "<g",
        }
        art = [
            Art(
                id=f"noto/{name}", source="noto", style="soft", concept=name,
                captions=(f"a {name}", f"a {name}, clean cartoon emoji"), variant="soft",
                weight=2.0, icon=Icon(name=name, body=body, canvas=CANVAS), cutout=True,
            )
            for name, body in bodies.items()
        ]  # fmt: skip
        art += [
            Art(
                id=f"3d/{kind}", source="3d", style="3d", concept="red box",
                captions=("a red box",), variant="3d", encoded=cutout_file(kind),
            )
            for kind in ("webp", "png")
        ]  # fmt: skip
        return art, [_credit("noto", self.packages[0]), _credit("3d", self.packages[0])]


@dataclass(frozen=True)
class PaintedRow:
    """Two things in ten colours each."""

    packages: tuple[Package, ...]
    name: str = "painted"
    share: float = 0.2

    def read(self, archives: Mapping[Package, Path]) -> tuple[list[Art], list[Credit]]:
        body = DISC.format(r=12, fill="currentColor")
        art = [
            Art(
                id=f"mdi/{name}/{colour}", source="mdi", style="silhouette", concept=name,
                captions=(f"a {colour} {name}", f"a {colour} {name}, solid one-color icon"),
                variant=f"silhouette:{colour}", icon=Icon(name=name, body=body, canvas=CANVAS),
                shade=shades[0], colour=colour, cutout=True,
            )
            for name in PAINTED
            for colour, shades in SHADES.items()
        ]  # fmt: skip
        return art, [_credit("mdi", self.packages[0])]


def _credit(source: str, package: Package) -> Credit:
    return Credit(
        source=source, title=f"The {source}", author=f"Maker of {source}", author_url="",
        licence="CC-BY-4.0", licence_url="https://example.org/by", package=package,
    )  # fmt: skip


def tiny_rows(folder: Path) -> tuple[EmojiRow, PaintedRow]:
    """Write the packages into ``folder``; gives the rows, which pin them."""
    found = []
    for name in ("fruit", "painted"):
        path = folder / f"{name}-1.tgz"
        path.write_text(json.dumps(["#e0242d", "#2f9e44", "#7d3cc9", "#ffffff", "#c8161d"]))
        package = Package(name=name, version="1", filename=path.name, sha256=sha256_of(path))
        found.append((package,))
    return EmojiRow(found[0]), PaintedRow(found[1])
