"""Drawings that need no package: polygons and stars, for the preset that draws nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from recipes.glyph.data.attribution import Credit
from recipes.glyph.data.iconify import Icon
from recipes.glyph.data.packages import Package
from recipes.glyph.data.rows.row import Art
from recipes.glyph.data.stages import DrawingStage
from sanakit.data.units import LocalEngine, run_stage

CANVAS = (0.0, 0.0, 64.0, 64.0)
CORNERS = range(3, 21)
FILLS = ("#d62828", "#2a9d3f", "#1d4ed8", "#f2b705", "#7b2cbf", "#f2711c")
KINDS = {"polygon": 1.0, "star": 0.5}
"""How near the middle every second corner is, of the others' distance."""
NOBODY = Credit(
    source="made-up",
    title="Made up",
    author="this recipe",
    author_url="",
    licence="CC0-1.0",
    licence_url="",
    package=Package(name="none", version="0", filename="none", sha256=""),
)


@dataclass(frozen=True)
class MadeUpRow:
    """Each of them filled and as an outline, under the name of a row that builds know."""

    name: str = "emoji"
    share: float = 1.0
    packages: tuple[Package, ...] = ()

    def read(self, archives: Mapping[Package, Path]) -> tuple[list[Art], list[Credit]]:
        """All of them, the same each time."""
        return [
            _art(kind, corners, style)
            for corners in CORNERS
            for kind in KINDS
            for style in ("flat", "outline")
        ], [NOBODY]


def write_made_up(folder: Path) -> Path:
    """Write a folder of drawings that `python -m recipes.glyph build --from` takes.

    Raises:
        DataError: the renderer of SVG is not installed, or the disk refuses.
    """
    row = MadeUpRow()
    stage = DrawingStage(folder, (row,), {}, {})
    run_stage(stage, [row.name], engine=LocalEngine(), report=lambda line: None)
    return folder


def _art(kind: str, corners: int, style: str) -> Art:
    fill = FILLS[corners % len(FILLS)]
    look = f'fill="{fill}"'
    if style == "outline":
        look = f'fill="none" stroke="{fill}" stroke-width="3"'
    concept = f"{kind} of {corners}"
    body = f'<polygon points="{_points(corners, KINDS[kind])}" {look}/>'
    return Art(
        id=f"{style}/{kind}-{corners}",
        source=NOBODY.source,
        style=style,
        concept=concept,
        captions=(f"a {concept}", f"a {concept}, {style}"),
        variant=style,
        icon=Icon(name=concept, body=body, canvas=CANVAS),
        cutout=True,
    )


def _points(corners: int, inner: float) -> str:
    found = []
    for number in range(2 * corners):
        far = 28 * (inner if number % 2 else 1.0)
        angle = math.pi * number / corners
        found.append(f"{32 + far * math.sin(angle):.2f},{32 - far * math.cos(angle):.2f}")
    return " ".join(found)
