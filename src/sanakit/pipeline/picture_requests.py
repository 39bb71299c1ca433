"""Picture files that a request names, and what is done with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ControlKind = Literal["none", "canny", "scribble", "soft-edges"]
Expand = tuple[int, int, int, int]
"""Pixels added at the left, top, right and bottom of a picture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EditRequest:
    """A picture file to begin with, and what of it is drawn anew; no strength is the usual one.

    A digest that is given is that of the file's bytes, and another file is refused.
    """

    image: str
    image_sha256: str | None = None
    mask: str | None = None
    mask_sha256: str | None = None
    strength: float | None = None
    expand: Expand = (0, 0, 0, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlRequest:
    """A picture file to follow, what is made of it first, and how strongly it is followed.

    A digest that is given is that of the file's bytes, and another file is refused.
    """

    image: str
    image_sha256: str | None = None
    kind: ControlKind = "none"
    scale: float = 1.0
