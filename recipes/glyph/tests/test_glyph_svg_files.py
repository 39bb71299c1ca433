"""SVG files by anybody: what of them is drawn, and what is refused."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from recipes.glyph.data import svg_files
from recipes.glyph.data.rasterize import render_icon
from recipes.glyph.data.svg_files import UnfitDrawing, read_svg

from tiny_art import SVG

HEAD = (
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    'width="10" height="10">'
)
RDF = """<metadata xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"
 xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:cc="http://web.resource.org/cc/"><rdf:RDF>
 <cc:Work rdf:about=""><dc:title>Red  Hat</dc:title>
 <dc:subject><rdf:Bag><rdf:li>hat</rdf:li><rdf:li/><rdf:li>red</rdf:li></rdf:Bag></dc:subject>
 <dc:creator><cc:Agent><dc:title>Ann</dc:title></cc:Agent></dc:creator>
 <cc:license rdf:resource="http://web.resource.org/cc/PublicDomain"/></cc:Work></rdf:RDF>
</metadata><rect width="5" height="5"/>"""


def body(content: str) -> str:
    return read_svg("x", SVG.format(content).encode()).icon.body


def test_what_the_file_says_about_itself_is_read() -> None:
    found = read_svg("x", SVG.format(RDF).encode())
    assert (found.title, found.author) == ("Red Hat", "Ann")
    assert found.keywords == ("hat", "red")
    assert found.licence.endswith("PublicDomain")
    assert "Ann" not in found.icon.body


@pytest.mark.parametrize(
    ("attributes", "canvas"),
    [
        ('width="20" height="10"', (0, 0, 20, 10)),
        ('width="1in" height="48px"', (0, 0, 96, 48)),
        ('viewBox="-1 -2 30,40" width="100%" height="100%"', (-1, -2, 30, 40)),
        ('viewBox="0 0 30 x" width="3pt" height="3pt"', (0, 0, 4, 4)),
    ],
)
def test_the_page_is_the_view_box_or_the_size(
    attributes: str, canvas: tuple[float, float, float, float]
) -> None:
    text = f'<svg xmlns="http://www.w3.org/2000/svg" {attributes}><rect width="1"/></svg>'
    assert read_svg("x", text.encode()).icon.canvas == pytest.approx(canvas)


@pytest.mark.parametrize("page", ['width="0" height="5"', "", 'width="9" height="900"'])
def test_a_page_without_a_size_one_can_draw_on_is_refused(page: str) -> None:
    with pytest.raises(UnfitDrawing, match="a page of"):
        read_svg("x", f'<svg xmlns="http://www.w3.org/2000/svg" {page}/>'.encode())


def test_scripts_handlers_and_foreign_attributes_are_left_out() -> None:
    found = body(
        '<script>alert(1)</script><rect onload="x()" width="5" height="5" fill="red"/>'
        '<foreignObject><p/></foreignObject><i:x xmlns:i="urn:i"/>'
    )
    assert "rect" in found
    for word in ("script", "alert", "onload", "foreignObject", "urn:i"):
        assert word not in found


@pytest.mark.parametrize(
    "content",
    [
        '<image href="a.png"/>',
        '<text x="1">hello</text>',
        '<use href="http://a.example/b.svg#c"/>',
        '<use href="file:///etc/passwd"/>',
        '<rect fill="url(http://a.example/#b)"/>',
        "<style>@import url(http://a.example/c.css)</style>",
        "<style>rect { fill: url('b.svg#c') }</style>",
    ],
)
def test_a_drawing_that_needs_what_is_not_in_it_is_refused(content: str) -> None:
    with pytest.raises(UnfitDrawing):
        body(content)


def test_links_and_paints_inside_the_file_are_kept() -> None:
    found = body(
        '<defs><linearGradient id="g"/></defs><rect fill="url(#g)" style="stroke:url( \'#g\' )"/>'
        '<use xmlns:xlink="http://www.w3.org/1999/xlink" xlink:href="#g"/>'
    )
    assert "url(#g)" in found
    assert 'href="#g"' in found


@pytest.mark.parametrize(
    "data",
    [
        b"", b"<svg", b"<html/>", b"\x00\x01", b'<?xml version="1.0" encoding="none"?><svg/>',
        b"<!DOCTYPE svg [<!ENTITY a 'M0 0'><!ENTITY b '&a;&a;'>]><svg width='9' height='9'>"
        b"<path d='&b;'/></svg>",
        b"x" * (svg_files.MAX_FILE + 1),
        SVG.format("<g>" * 90 + "</g>" * 90).encode(),
        SVG.format("<g/>" * (svg_files.MAX_ELEMENTS + 1)).encode(),
        SVG.format(f'<path d="{"M0 0" * 40_000}"/>').encode(),
        SVG.format("<filter><feGaussianBlur/></filter>" * 9).encode(),
    ],
    ids=[
        "empty", "cut", "html", "binary", "encoding", "bomb", "large", "deep", "many", "long",
        "blurs",
    ],
)  # fmt: skip
def test_malformed_and_hostile_files_are_refused(data: bytes) -> None:
    with pytest.raises(UnfitDrawing):
        read_svg("x", data)


def test_a_cleaned_drawing_looks_like_the_file() -> None:
    resvg = pytest.importorskip("resvg_py")
    text = (
        f'{HEAD[:-1]} style="fill:#d02030"><title>t</title><defs><linearGradient id="g">'
        '<stop stop-color="#00f"/><stop offset="1" stop-color="#0f0"/></linearGradient></defs>'
        '<rect x="1" y="1" width="8" height="4"/><a><rect x="1" y="5" width="8" height="4" '
        'fill="url(#g)"/></a></svg>'
    )
    icon = read_svg("x", text.encode()).icon
    png = resvg.svg_to_bytes(svg_string=text.replace('width="10" height="10"', 'width="64" '
        'height="64" viewBox="0.3636 0.3636 9.2727 9.2727"', 1))  # fmt: skip
    with Image.open(BytesIO(png)) as image:
        wanted = np.array(image.convert("RGBA")).astype(int)
    found = render_icon(icon, size=64)
    assert found is not None
    # Half a pixel of the frame may differ along the border of the drawing.
    assert np.abs(found.astype(int)[8:-8, 8:-8] - wanted[8:-8, 8:-8]).mean() < 3
