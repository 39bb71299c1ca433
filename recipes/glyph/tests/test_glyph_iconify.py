"""Icon sets, SVG documents and their pictures."""

from __future__ import annotations

import importlib
import io
import re
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from recipes.glyph.data.iconify import Icon, parse_collection, svg_text
from recipes.glyph.data.rasterize import (
    MARGIN,
    MAX_ZOOM,
    framing,
    load_renderer,
    render_icon,
    resize_picture,
    visible_box,
)

from sanakit.errors import DataError

INFO = {
    "name": "Toy Set",
    "author": {"name": "Ann", "url": "https://example.org/ann"},
    "license": {"title": "MIT License", "spdx": "MIT"},
}


def drawing(body: str, canvas: tuple[float, float, float, float] = (0, 0, 100, 100)) -> Icon:
    return Icon(name="thing", body=body, canvas=canvas)


def webp(rgba: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgba).save(buffer, "WEBP", lossless=True, exact=True)
    return buffer.getvalue()


def test_an_icon_takes_its_canvas_from_itself_then_the_set_then_sixteen() -> None:
    icons = {"a": {"body": "<a/>", "width": 5, "left": -2}, "b": {"body": "<b/>"}}
    both = parse_collection("toy", {"icons": icons, "width": 8, "height": 9, "top": 3}, INFO)
    assert both.icons["a"].canvas == (-2, 3, 5, 9)
    assert both.icons["b"].canvas == (0, 3, 8, 9)
    assert parse_collection("toy", {"icons": icons}, INFO).icons["b"].canvas == (0, 0, 16, 16)


def test_hidden_icons_are_left_out_and_names_are_turned_to_icons() -> None:
    data = {
        "icons": {"a": {"body": ""}, "old": {"body": "", "hidden": True}},
        "aliases": {"alpha": {"parent": "a"}},
        "chars": {"1f34e": "a"},
    }
    found = parse_collection("toy", data, INFO)
    assert set(found.icons) == {"a"}
    assert found.aliases == {"alpha": "a"}
    assert found.codepoints == {"a": "1f34e"}
    assert (found.author, found.licence, found.licence_url) == ("Ann", "MIT", "")


def test_a_set_without_a_licence_is_refused() -> None:
    info = {key: value for key, value in INFO.items() if key != "license"}
    with pytest.raises(DataError, match=r"'toy'.*license"):
        parse_collection("toy", {"icons": {}}, info)


def test_an_svg_is_well_formed_and_shows_the_view() -> None:
    text = svg_text(drawing('<path fill="currentColor"/>'), (1, 2, 3, 4), size=7, colour="#123456")
    root = ElementTree.fromstring(text)
    assert root.attrib["viewBox"] == "1 2 3 4"
    assert (root.attrib["width"], root.attrib["height"]) == ("7", "7")
    assert "currentColor" not in text
    assert re.search('fill="#123456"', text)


def test_the_visible_box_is_tight() -> None:
    alpha = np.zeros((10, 12), np.uint8)
    alpha[3:5, 6:11] = 200
    assert visible_box(alpha) == (6, 3, 5, 2)
    assert visible_box(np.zeros((4, 4), np.uint8)) is None


def test_framing_centres_the_box_and_leaves_the_margin() -> None:
    left, top, width, height = framing((10, 30, 80, 40), side=100)
    assert width == height == pytest.approx(80 / (1 - 2 * MARGIN))
    assert left + width / 2 == pytest.approx(50)
    assert top + height / 2 == pytest.approx(50)


def test_framing_enlarges_a_dot_only_so_far() -> None:
    assert framing((50, 50, 1, 1), side=100)[2] == pytest.approx(100 / MAX_ZOOM)


def test_a_rendered_icon_is_centred_with_its_margin_and_keeps_its_aspect() -> None:
    icon = drawing('<rect x="5" y="5" width="60" height="30" fill="#ff0000"/>')
    picture = render_icon(icon, size=64)
    assert picture is not None
    assert picture.shape == (64, 64, 4)
    assert picture.dtype == np.uint8
    box = visible_box(picture[..., 3])
    assert box is not None
    side = min(64 * 60 / 100 * MAX_ZOOM, 64 * (1 - 2 * MARGIN))
    np.testing.assert_allclose(box, (32 - side / 2, 32 - side / 4, side, side / 2), atol=1.6)
    np.testing.assert_array_equal(picture[32, 32], [255, 0, 0, 255])


def test_alpha_of_a_rendered_icon_is_straight() -> None:
    icon = drawing('<rect width="100" height="100" fill="#ff0000" fill-opacity="0.5"/>')
    picture = render_icon(icon, size=32)
    assert picture is not None
    np.testing.assert_allclose(picture[16, 16].astype(int), [255, 0, 0, 128], atol=1)


def test_a_wide_canvas_is_not_squashed_and_clips_what_lies_outside() -> None:
    body = '<circle cx="20" cy="10" r="10" fill="#00f"/><rect y="-9" width="40" height="6"/>'
    picture = render_icon(drawing(body, (0, 0, 40, 20)), size=64)
    assert picture is not None
    box = visible_box(picture[..., 3])
    assert box is not None
    assert box[2] == pytest.approx(box[3], abs=1)
    assert picture[32, 32, 2] == 255


def test_a_repainted_icon_has_the_colour() -> None:
    icon = drawing('<rect width="90" height="90" fill="currentColor"/>')
    picture = render_icon(icon, size=16, colour="#1f66d6")
    assert picture is not None
    np.testing.assert_array_equal(picture[8, 8], [0x1F, 0x66, 0xD6, 255])


def test_an_empty_icon_yields_nothing() -> None:
    assert render_icon(drawing("<g/>"), size=16) is None


def test_a_missing_renderer_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(DataError, match="resvg-py") as raised:
        load_renderer()
    assert raised.value.hint == 'pip install "sanakit[data]"'


def test_the_data_package_imports_without_the_renderer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    for name in ("rasterize", "drawing", "pictures"):
        importlib.reload(importlib.import_module(f"recipes.glyph.data.{name}"))


def test_a_picture_file_is_framed_like_an_icon() -> None:
    rgba = np.zeros((100, 100, 4), np.uint8)
    rgba[5:35, 5:65] = (255, 0, 0, 255)
    picture = resize_picture(webp(rgba), size=64)
    icon = drawing('<rect x="5" y="5" width="60" height="30" fill="#ff0000"/>')
    rendered = render_icon(icon, size=64)
    assert picture is not None
    assert rendered is not None
    boxes = visible_box(picture[..., 3]), visible_box(rendered[..., 3])
    np.testing.assert_allclose(boxes[0], boxes[1], atol=2)


def test_the_hidden_colour_of_empty_pixels_does_not_bleed() -> None:
    rgba = np.zeros((80, 80, 4), np.uint8)
    rgba[..., 1] = 255  # invisible green
    rgba[20:60, 20:60] = (255, 0, 0, 255)
    picture = resize_picture(webp(rgba), size=32)
    assert picture is not None
    assert picture[picture[..., 3] > 0][:, 1].max() <= 2


def test_an_empty_picture_file_yields_nothing() -> None:
    assert resize_picture(webp(np.zeros((8, 8, 4), np.uint8)), size=4) is None


def test_a_canvas_that_does_not_start_at_zero_shows_the_same() -> None:
    one = drawing('<rect x="5" y="5" width="60" height="30" fill="#ff0000"/>')
    body = '<rect x="-75" y="205" width="60" height="30" fill="#ff0000"/>'
    other = drawing(body, (-80, 200, 100, 100))
    np.testing.assert_array_equal(render_icon(one, size=32), render_icon(other, size=32))


def test_alpha_of_a_picture_file_is_straight() -> None:
    picture = resize_picture(webp(np.full((40, 40, 4), (200, 100, 50, 128), np.uint8)), size=20)
    assert picture is not None
    np.testing.assert_allclose(picture[10, 10].astype(int), [200, 100, 50, 128], atol=2)


def test_a_picture_file_is_made_smaller_by_averaging() -> None:
    rgba = np.full((80, 80, 4), 255, np.uint8)
    rgba[::2, :, :3] = 0  # lines of one pixel
    picture = resize_picture(webp(rgba), size=16)
    assert picture is not None
    assert 90 < picture[8, 8, 0] < 165
