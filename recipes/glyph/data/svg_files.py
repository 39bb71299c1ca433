"""Whole SVG files become drawings: parsed, checked, reduced to their shapes."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

from recipes.glyph.data.iconify import Icon

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
DC = "{http://purl.org/dc/elements/1.1/}"

MAX_FILE = 400_000  # bytes; what is larger takes long to draw and has details too small to see
MAX_BODY = 150_000  # characters, after all but shapes is gone
MAX_ELEMENTS = 2_000
MAX_DEPTH = 60
MAX_FILTERS = 8  # blurs are by far the slowest thing to draw
PAGE_ZOOM = 12.0  # a drawing is often a small thing on a large page

_SHAPE_NAMES = """
    svg g path rect circle ellipse line polyline polygon use defs linearGradient radialGradient
    stop clipPath mask symbol style filter pattern feGaussianBlur feOffset feBlend feFlood
    feComposite feColorMatrix feMerge feMergeNode marker switch a
"""
_SHAPES = frozenset(_SHAPE_NAMES.split())
_DROPPED = frozenset(
    ["metadata", "title", "desc", "namedview", "script", "perspective", "foreignObject", "author"]
)
_UNITS = {
    "": 1.0, "px": 1.0, "pt": 4 / 3, "pc": 16.0, "mm": 96 / 25.4, "cm": 96 / 2.54, "in": 96.0,
}  # fmt: skip
_FOREIGN = re.compile(r"@import|url\(\s*['\"]?(?!#|\s*['\"]?#)", re.IGNORECASE)


class UnfitDrawing(ValueError):
    """An SVG file that is not to be drawn, and why."""


@dataclass(frozen=True, kw_only=True)
class SvgFile:
    """A drawing and what its file says about it; texts may be empty."""

    icon: Icon
    title: str
    keywords: tuple[str, ...]
    author: str
    licence: str


def _local(name: str) -> tuple[str, str]:
    """Namespace and local part of an element's or attribute's name."""
    space, brace, local = name.rpartition("}")
    return (space[1:], local) if brace else ("", name)


def _length(text: str | None) -> float | None:
    match = re.fullmatch(r"\s*([\d.]+(?:e[+-]?\d+)?)\s*([a-z]*)\s*", text or "")
    return float(match[1]) * _UNITS[match[2]] if match and match[2] in _UNITS else None


def _canvas(root: ElementTree.Element) -> tuple[float, float, float, float]:
    """Left, top, width and height of the page, in the units of the shapes.

    Raises:
        UnfitDrawing: the page has no size or none that can be drawn on.
    """
    try:
        box = [float(part) for part in re.split(r"[\s,]+", root.get("viewBox", "").strip()) if part]
    except ValueError:
        box = []
    if len(box) != 4:
        width, height = _length(root.get("width")), _length(root.get("height"))
        box = [0.0, 0.0, width or 0.0, height or 0.0]
    left, top, width, height = box
    if not (0 < width < 1e6 and 0 < height < 1e6 and 1 / 20 < width / height < 20):
        raise UnfitDrawing(f"a page of {width:g} by {height:g}")
    return left, top, width, height


def _bare(
    element: ElementTree.Element, counts: dict[str, int], depth: int = 0
) -> ElementTree.Element | None:
    """A copy of an element with nothing but shapes; None if it is no part of a drawing.

    Raises:
        UnfitDrawing: it needs something from outside, or what cannot be drawn.
    """
    space, name = _local(element.tag) if isinstance(element.tag, str) else ("?", "")
    if space not in (SVG, "") or name in _DROPPED:
        return None
    if name not in _SHAPES:
        raise UnfitDrawing(f"an element <{name}>")
    counts[name] = counts.get(name, 0) + 1
    if depth > MAX_DEPTH:
        raise UnfitDrawing(f"more than {MAX_DEPTH} elements inside each other")
    if sum(counts.values()) > MAX_ELEMENTS:
        raise UnfitDrawing(f"more than {MAX_ELEMENTS} elements")
    copy = ElementTree.Element(f"{{{SVG}}}{'g' if name in ('a', 'svg') else name}")
    copy.text = element.text if name == "style" else None
    for key, value in element.attrib.items():
        space, attribute = _local(key)
        if space not in ("", XLINK) or attribute.startswith("on") or name == "svg":
            continue
        if attribute == "href" and not value.startswith("#"):
            raise UnfitDrawing(f"a link to {value[:40]}")
        if _FOREIGN.search(value):
            raise UnfitDrawing("a paint server outside the file")
        copy.set(key, value)
    if _FOREIGN.search(copy.text or ""):
        raise UnfitDrawing("a style sheet that needs another file")
    if name == "svg":
        style = ("style", "fill", "stroke", "stroke-width", "fill-rule")
        copy.attrib.update({key: element.attrib[key] for key in style if key in element.attrib})
    copy.extend([child for one in element if (child := _bare(one, counts, depth + 1)) is not None])
    return copy


def _parse(data: bytes) -> ElementTree.Element:
    """The root of a document.

    Raises:
        UnfitDrawing: it is too large, no SVG, or has entities within entities, which may explode.
    """
    if len(data) > MAX_FILE:
        raise UnfitDrawing(f"{len(data)} bytes are more than {MAX_FILE}")
    if any(b"&" in value for value in re.findall(rb"<!ENTITY[^>]*", data)):
        raise UnfitDrawing("entities within entities")
    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise UnfitDrawing(f"no well-formed XML: {error}") from error
    if root.tag not in ("svg", f"{{{SVG}}}svg"):
        raise UnfitDrawing(f"the root is {root.tag}, not <svg>")
    return root


def _text(root: ElementTree.Element, path: str) -> str:
    return " ".join((root.findtext(path) or "").split())


def _licence(root: ElementTree.Element) -> str:
    addresses = (
        element.get(f"{RDF}resource")
        for element in root.iter()
        if isinstance(element.tag, str) and _local(element.tag)[1].lower() == "license"
    )
    return next((address for address in addresses if address), "")


def read_svg(name: str, data: bytes) -> SvgFile:
    """The drawing in an SVG file, which may hold anything.

    Raises:
        UnfitDrawing: it is malformed, too large, or needs what is not in it.
    """
    root = _parse(data)
    canvas = _canvas(root)
    counts: dict[str, int] = {}
    bare = _bare(root, counts)
    if bare is None or counts.get("feGaussianBlur", 0) > MAX_FILTERS:
        raise UnfitDrawing("too many blurs")
    body = ElementTree.tostring(bare, encoding="unicode")
    if len(body) > MAX_BODY:
        raise UnfitDrawing(f"{len(body)} characters are more than {MAX_BODY}")
    return SvgFile(
        icon=Icon(name=name, body=body, canvas=canvas, zoom=PAGE_ZOOM),
        title=_text(root, f".//{DC}title"),
        keywords=tuple(
            text.strip() for one in root.findall(f".//{DC}subject//{RDF}li") if (text := one.text)
        ),
        author=_text(root, f".//{DC}creator//{DC}title"),
        licence=_licence(root),
    )


ElementTree.register_namespace("", SVG)
ElementTree.register_namespace("xlink", XLINK)
