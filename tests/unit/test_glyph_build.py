"""The whole recipe on archives of a few icons, and the reader of what it builds."""

from __future__ import annotations

import io
import json
import multiprocessing
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sanakit.data.glyph.selection import FLUENT_3D_SOURCE, STYLES
from sanakit.data.glyph.silhouettes import SETS, SHADES

from sanakit.data.glyph import build as glyph
from sanakit.data.glyph import drawing
from sanakit.data.glyph.build import ATTRIBUTION, STAGE, build_glyph
from sanakit.data.glyph.pictures import PICTURES, RECORDS, SUMMARY, GlyphPictures, compose
from sanakit.data.stages import sha256_of
from sanakit.errors import ConfigError, DataError

DISC = '<circle cx="16" cy="16" r="{r}" fill="{fill}"/>'
SETS_BUILT = [*(prefix for prefix in STYLES if prefix != FLUENT_3D_SOURCE), *SETS]


def _set(prefix: str) -> dict[str, Any]:
    if prefix in SETS:
        body = DISC.format(r=12, fill="currentColor")
        return {"icons": {"circle": {"body": body}}, "width": 32, "height": 32}
    icons = {
        "red-apple": {"body": DISC.format(r=14, fill="#e0242d")},
        "waving-hand": {"body": DISC.format(r=10, fill="#f9cf1c")},
    }
    if prefix == "noto":
        icons["cloud"] = {"body": "<g/>"}  # blank
        icons["rocket"] = {"body": "<g"}  # not XML
    return {"icons": icons, "width": 32, "height": 32}


def _info(prefix: str) -> dict[str, Any]:
    licence = {"title": "CC BY 4.0", "spdx": "CC-BY-4.0", "url": "https://example.org/by"}
    return {"name": f"The {prefix}", "author": {"name": f"Maker of {prefix}"}, "license": licence}


def _emoji(label: str, code: str, group: int, **more: object) -> dict[str, Any]:
    character = chr(int(code, 16))
    return {
        "label": label, "hexcode": code, "emoji": character, "group": group, "subgroup": group,
        "tags": ["one", "two"], **more,
    }  # fmt: skip


def _webp() -> bytes:
    rgba = np.zeros((40, 40, 4), np.uint8)
    rgba[4:36, 4:36] = (224, 36, 45, 255)
    buffer = io.BytesIO()
    Image.fromarray(rgba).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def _pack(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archives")
    iconify = {f"json/{prefix}.json": _json(_set(prefix)) for prefix in SETS_BUILT}
    iconify["collections.json"] = _json({prefix: _info(prefix) for prefix in SETS_BUILT})
    groups = {"groups": [{"order": 1, "message": "food & drink"}]}
    messages = {**groups, "subgroups": [{"order": 1, "message": "fruit"}]}
    skin = {"label": "waving hand: medium skin tone", "hexcode": "1F44B-1F3FD", "emoji": "👋🏽"}
    data = [
        _emoji("red apple", "1F34E", 1),
        _emoji("waving hand", "1F44B", 1, skins=[{**skin, "tone": 3, "group": 1, "subgroup": 1}]),
        _emoji("cloud", "2601", 1),
        _emoji("rocket", "1F680", 1),
    ]
    contents = (
        iconify,
        {"assets/1f34e.webp": _webp(), "assets/1f44b-1f3fd.webp": _webp()},
        {"en/data.json": _json(data), "en/messages.json": _json(messages)},
    )
    for package, files in zip(glyph.PACKAGES, contents, strict=True):
        _pack(folder / package.filename, files)
    return folder


@pytest.fixture
def build(archives: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., glyph.GlyphSummary]:
    pins = tuple(
        replace(package, sha256=sha256_of(archives / package.filename))
        for package in glyph.PACKAGES
    )
    monkeypatch.setattr(glyph, "PACKAGES", pins)

    def run(out: Path, **settings: Any) -> glyph.GlyphSummary:
        return build_glyph(out, **{"packages": archives, "size": 32, "workers": 1, **settings})

    return run


Build = Callable[..., glyph.GlyphSummary]


def test_a_build_holds_every_wanted_picture_and_counts_what_it_dropped(
    build: Build, tmp_path: Path
) -> None:
    summary = build(tmp_path)
    # Two 3D files, two emoji in each of nine sets, one noun in ten colours from two sets.
    painted = 2 * len(SHADES)
    emoji_sets = len(STYLES) - 2
    assert summary.pictures == 2 + 2 * emoji_sets + painted
    assert (summary.blank, summary.failed) == (1, 1)
    assert summary.styles["silhouette"] == painted
    assert sum(summary.splits.values()) == summary.pictures
    data = GlyphPictures.open(tmp_path)
    assert data.pictures.shape == (summary.pictures, 32, 32, 4)
    assert data.pictures.dtype == np.uint8
    assert isinstance(data.pictures, np.memmap)
    assert len(data.records) == summary.pictures
    assert not list(tmp_path.glob(".*"))


def test_pictures_and_records_agree_row_by_row(build: Build, tmp_path: Path) -> None:
    build(tmp_path)
    data = GlyphPictures.open(tmp_path)
    for picture, record in zip(data.pictures, data.records, strict=True):
        if record.style == "silhouette":
            shade = "#{:02x}{:02x}{:02x}".format(*picture[16, 16, :3])
            assert shade in SHADES[record.colour]
            assert all(record.colour in caption for caption in record.captions)
        elif record.name == "red apple":
            assert record.colour == "red"
            assert record.captions[0] == "a red apple"


def test_records_carry_source_licence_and_tone(build: Build, tmp_path: Path) -> None:
    build(tmp_path)
    records = {record.id: record for record in GlyphPictures.open(tmp_path).records}
    assert records["twemoji/red-apple"].licence == "CC-BY-4.0"
    assert records["fluent-emoji-3d/1f34e"].licence == "MIT"
    toned = records["fluent-emoji-3d/1f44b-1f3fd"]
    assert toned.name == "waving hand"
    assert toned.weight < records["noto/waving-hand"].weight
    assert all("medium skin tone" in caption for caption in toned.captions)


def test_splits_part_the_pictures(build: Build, tmp_path: Path) -> None:
    build(tmp_path)
    data = GlyphPictures.open(tmp_path)
    parts = [data.indices(split) for split in ("train", "held_concept", "held_style")]
    assert sorted(np.concatenate(parts)) == list(range(len(data.records)))
    with pytest.raises(DataError, match="'test' is not one of train"):
        data.indices("test")


def test_every_author_with_pictures_is_thanked(build: Build, tmp_path: Path) -> None:
    build(tmp_path)
    text = (tmp_path / ATTRIBUTION).read_text()
    for prefix in SETS_BUILT:
        assert f"Maker of {prefix}" in text
    assert "[CC-BY-4.0](https://example.org/by)" in text
    assert "Emojibase" in text


def test_a_finished_build_is_recognised_and_left_alone(build: Build, tmp_path: Path) -> None:
    first = build(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    second = build(tmp_path)
    assert first.built
    assert not second.built
    assert replace(second, built=True) == first
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_two_builds_are_the_same_to_the_byte(build: Build, tmp_path: Path) -> None:
    for name in ("one", "two"):
        build(tmp_path / name)
    for name in (PICTURES, RECORDS, SUMMARY, ATTRIBUTION):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_other_settings_lead_to_another_build(build: Build, tmp_path: Path) -> None:
    build(tmp_path)
    assert build(tmp_path, size=16).built
    assert GlyphPictures.open(tmp_path).pictures.shape[1:] == (16, 16, 4)


def test_new_records_do_not_draw_the_pictures_again(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path)
    monkeypatch.setattr(glyph, "RECORDS_VERSION", glyph.RECORDS_VERSION + 1)
    before = (tmp_path / PICTURES).stat().st_mtime_ns
    reports: list[str] = []
    assert build(tmp_path, report=reports.append).built
    assert "found the pictures" in reports
    assert (tmp_path / PICTURES).stat().st_mtime_ns == before


def test_new_records_that_break_halfway_do_not_look_finished(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> str:
        raise KeyboardInterrupt

    build(tmp_path)
    monkeypatch.setattr(glyph, "RECORDS_VERSION", glyph.RECORDS_VERSION + 1)
    monkeypatch.setattr(glyph, "attribution_text", fail)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path)
    with pytest.raises(DataError, match=r"summary\.json is missing"):
        GlyphPictures.open(tmp_path)


@pytest.mark.parametrize("broken", ["draw_all", "describe"])
def test_a_build_that_breaks_does_not_look_finished_and_can_be_done_again(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    build(tmp_path)
    with monkeypatch.context() as patch:

        def fail(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(glyph, broken, fail)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path, size=16)
    with pytest.raises(DataError, match=r"summary\.json is missing"):
        GlyphPictures.open(tmp_path)
    assert build(tmp_path, size=16).built
    assert len(GlyphPictures.open(tmp_path).records) > 0


def test_a_worker_pool_draws_the_same_pictures(build: Build, tmp_path: Path) -> None:
    build(tmp_path / "one")
    build(tmp_path / "two", workers=2)
    assert multiprocessing.active_children() == []
    pair = [(tmp_path / name / PICTURES).read_bytes() for name in ("one", "two")]
    assert pair[0] == pair[1]


def test_a_limit_spreads_over_all_styles(build: Build, tmp_path: Path) -> None:
    assert build(tmp_path, limit=10).pictures <= 10
    styles = {record.style for record in GlyphPictures.open(tmp_path).records}
    assert {"3d", "silhouette"} < styles


@pytest.mark.parametrize("name", ["size", "workers", "limit"])
def test_numbers_below_one_are_refused(build: Build, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}=0 is less than 1"):
        build(tmp_path, **{name: 0})


def test_an_archive_that_is_not_the_pinned_one_stops_the_build(
    archives: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="is pinned"):
        build_glyph(tmp_path, packages=archives, workers=1)
    assert not (tmp_path / SUMMARY).exists()


def test_a_build_that_draws_nothing_says_so(tmp_path: Path) -> None:
    bad = drawing.Drawing(id="x", encoded=b"not a picture")
    with pytest.raises(DataError, match="none of 1 pictures") as raised:
        drawing.draw_all(tmp_path / "p.npy", [bad], size=4, workers=1, report=print)
    assert "UnidentifiedImageError" in str(raised.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [PICTURES, RECORDS, SUMMARY])
def test_a_missing_file_is_named_by_the_reader(build: Build, tmp_path: Path, name: str) -> None:
    build(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=f"{name} is missing"):
        GlyphPictures.open(tmp_path)


def test_the_reader_refuses_files_that_do_not_belong_together(build: Build, tmp_path: Path) -> None:
    build(tmp_path)
    lines = (tmp_path / RECORDS).read_text().splitlines(keepends=True)
    (tmp_path / RECORDS).write_text("".join(lines[:-1]))
    with pytest.raises(DataError, match=f"{len(lines)} pictures and {len(lines) - 1} records"):
        GlyphPictures.open(tmp_path)
    (tmp_path / RECORDS).write_text("{}\n")
    with pytest.raises(DataError, match="damaged"):
        GlyphPictures.open(tmp_path)


def test_the_stage_file_of_another_build_is_not_believed(build: Build, tmp_path: Path) -> None:
    build(tmp_path)
    stage = json.loads((tmp_path / STAGE).read_text())
    (tmp_path / STAGE).write_text(json.dumps({**stage, "settings": "other"}))
    (tmp_path / SUMMARY).unlink()
    reports: list[str] = []
    build(tmp_path, report=reports.append)
    assert "found the pictures" not in reports


def test_composing_shows_the_background_where_nothing_is_drawn() -> None:
    rgba = np.zeros((2, 4, 6, 4), np.uint8)
    rgba[:, 0, 0] = (255, 0, 51, 255)
    rgba[:, 1, 1] = (255, 0, 51, 51)
    behind = np.array([[1.0, 1.0, 1.0], [0.0, 0.5, 1.0]])
    image = compose(rgba, behind)
    assert image.shape == (2, 3, 4, 6)
    assert image.dtype == torch.float32
    torch.testing.assert_close(image[0, :, 3, 3], torch.tensor([1.0, 1.0, 1.0]))
    torch.testing.assert_close(image[1, :, 3, 3], torch.tensor([-1.0, 0.0, 1.0]))
    torch.testing.assert_close(image[1, :, 0, 0], torch.tensor([1.0, -1.0, -0.6]))
    mixed = np.array([0.2 * 1 + 0.8 * 0, 0.8 * 0.5, 0.2 * 0.2 + 0.8]) * 2 - 1
    torch.testing.assert_close(image[1, :, 1, 1], torch.tensor(mixed, dtype=torch.float32))


def test_pictures_straight_from_the_memory_map_are_composed(build: Build, tmp_path: Path) -> None:
    build(tmp_path)
    pictures = GlyphPictures.open(tmp_path).pictures[:3]
    assert not pictures.flags.writeable
    image = compose(pictures, np.ones((3, 3)))
    assert image.min() >= -1
    assert image.max() == 1
