"""What one row of the mixture gives: drawings with what is known of them, and whom to thank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from recipes.glyph.data.attribution import Credit
from recipes.glyph.data.iconify import Icon
from recipes.glyph.data.packages import Package


@dataclass(frozen=True, kw_only=True)
class Art:
    """One picture to be: its drawing and what is known of it before it is drawn.

    The drawing is ``icon``, painted in ``shade`` (hexadecimal) if it has one colour of ours, or
    ``encoded``, a picture file with alpha. ``concept`` is what it shows, the same words in every
    style; ``captions`` are exact and begin with the plainest; ``colour`` is the one colour word
    that is true of it as drawn, empty if it is to be measured, None if none should be said.
    ``weight`` is how often to draw it relative to others of its row. ``variant`` tells apart what
    is held out together: a style, or a style and a colour.
    """

    id: str
    source: str
    style: str
    concept: str
    captions: tuple[str, ...]
    variant: str
    weight: float = 1.0
    icon: Icon | None = None
    shade: str = ""
    encoded: bytes = b""
    colour: str | None = ""
    cutout: bool = False
    """Whether it shows one whole thing with nothing behind it, fit to stand in a composition."""


class Row(Protocol):
    """A kind of art; ``share`` is its part of training samples, of all rows and composites."""

    @property
    def name(self) -> str:
        """The row's name, a word."""

    @property
    def share(self) -> float:
        """Its part of what training draws."""

    @property
    def packages(self) -> tuple[Package, ...]:
        """What it is read from."""

    def read(self, archives: Mapping[Package, Path]) -> tuple[list[Art], list[Credit]]:
        """All its art, in an order that depends on nothing but the packages, and the credits."""
