"""The whole recipe on rows of a few drawings, and the reader of what it builds."""

from __future__ import annotations

import json
import lzma
import multiprocessing
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recipes.glyph.data import build as glyph
from recipes.glyph.data import rasterize, stages
from recipes.glyph.data.build import ATTRIBUTION, DRAWINGS, build_glyph
from recipes.glyph.data.drawing import Drawing
from recipes.glyph.data.pictures import RECORDS, SUMMARY, GlyphPictures, compose
from recipes.glyph.data.rasterize import MARGIN
from recipes.glyph.data.rows.row import Art
from recipes.glyph.data.shades import SHADES
from recipes.glyph.data.store import INDEX

from sanakit.errors import ConfigError, DataError
from tiny_rows import FRUIT, PAINTED, EmojiRow, tiny_rows

DRAWN = len(FRUIT) + 2 + len(PAINTED) * len(SHADES)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    tiny_rows(folder)
    return folder


Build = Callable[..., glyph.GlyphSummary]


@pytest.fixture
def build(packages: Path) -> Build:
    rows = tiny_rows(packages)

    def run(out: Path, **settings: Any) -> glyph.GlyphSummary:
        defaults = {"packages": packages, "rows": rows, "size": 32, "workers": 1}
        return build_glyph(out, **{**defaults, **settings})

    return run


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_build_holds_every_drawing_and_counts_what_it_dropped(
    build: Build, tmp_path: Path
) -> None:
    summary = build(tmp_path)
    assert summary.pictures == DRAWN
    assert (summary.blank, summary.failed) == (1, 1)
    assert list(summary.failures) == ["noto/rocket"]
    assert summary.rows == {"emoji": len(FRUIT) + 2, "painted": 20}
    assert summary.shares == {"emoji": 0.75, "painted": 0.25}
    assert sum(summary.splits.values()) == summary.pictures
    data = GlyphPictures.open(tmp_path)
    assert data.size == 32
    assert len(data.records) == len(data.store) == DRAWN
    rgba = data.rgba(range(DRAWN))
    assert rgba.shape == (DRAWN, 32, 32, 4)
    assert rgba.dtype == np.uint8
    assert not [path for path in files(tmp_path) if "/." in path or path.startswith(".")]


def test_pictures_and_records_agree_row_by_row(build: Build, tmp_path: Path) -> None:
    build(tmp_path)
    data = GlyphPictures.open(tmp_path)
    for picture, record in zip(data.rgba(range(DRAWN)), data.records, strict=True):
        if record.painted:
            assert "#{:02x}{:02x}{:02x}".format(*picture[16, 16, :3]) in SHADES[record.colour]
            assert all(record.colour in caption for caption in record.captions)
            assert record.row == "painted"
        if record.name == "red box":
            assert np.abs(picture[16, 16].astype(int) - (224, 36, 45, 255)).max() <= 3
        left, top, width, height = record.box
        assert max(width, height) == pytest.approx(1 - 2 * MARGIN, abs=0.02)
        visible = np.argwhere(picture[..., 3] >= rasterize.VISIBLE)
        at = [int(visible[:, 1].min()), int(visible[:, 0].min())]
        size = [int(np.ptp(visible[:, 1])) + 1, int(np.ptp(visible[:, 0])) + 1]
        assert np.abs(np.array([left, top]) * 32 - at).max() <= 1.5
        assert np.abs(np.array([width, height]) * 32 - size).max() <= 2


def test_a_measured_colour_is_said_and_known_where_it_vanishes(
    build: Build, tmp_path: Path
) -> None:
    build(tmp_path)
    records = {record.id: record for record in GlyphPictures.open(tmp_path).records}
    plum, lime = records["noto/plum"], records["noto/lime"]  # purple and white
    assert plum.colour == "purple"
    assert plum.captions == ["a plum", "a plum, clean cartoon emoji", "a purple plum"]
    assert (plum.pale, lime.pale) == (False, True)
    assert plum.hidden_on == ()
    assert {"white", "cream"} <= set(lime.hidden_on)
    assert not {"black", "dark blue"} & set(lime.hidden_on)
    assert "black" in records["mdi/circle/black"].hidden_on
    assert lime.weight == pytest.approx(0.2 * plum.weight, rel=1e-4)


def test_records_carry_source_licence_and_split(build: Build, tmp_path: Path) -> None:
    build(tmp_path)
    data = GlyphPictures.open(tmp_path)
    assert {record.licence for record in data.records} == {"CC-BY-4.0"}
    assert {record.source for record in data.records} == {"noto", "3d", "mdi"}
    parts = [data.indices(split) for split in ("train", "held_concept", "held_style")]
    assert sorted(np.concatenate(parts)) == list(range(len(data.records)))
    with pytest.raises(DataError, match="'test' is not one of train"):
        data.indices("test")


def test_every_author_with_pictures_is_thanked(build: Build, tmp_path: Path) -> None:
    build(tmp_path)
    text = (tmp_path / ATTRIBUTION).read_text()
    for source in ("noto", "3d", "mdi"):
        assert f"Maker of {source}" in text
    assert "[CC-BY-4.0](https://example.org/by)" in text


def test_a_finished_build_is_recognised_and_left_alone(build: Build, tmp_path: Path) -> None:
    first = build(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    # Nor are the packages needed any more.
    second = build(tmp_path, packages=tmp_path / "nowhere")
    assert first.built
    assert not second.built
    assert replace(second, built=True) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_two_builds_are_the_same_to_the_byte_with_any_number_of_workers(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path / "one")
    build(tmp_path / "two", workers=2)
    assert multiprocessing.active_children() == []
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_sizes_stand_side_by_side_and_are_of_the_same_drawings(
    build: Build, tmp_path: Path
) -> None:
    build(tmp_path, size=16)
    assert build(tmp_path, size=(32, 48)).sizes == [16, 32, 48]
    for size in (16, 32, 48):
        assert GlyphPictures.open(tmp_path, size).rgba([0]).shape == (1, size, size, 4)
    with pytest.raises(DataError, match="these sizes: 16, 32, 48"):
        GlyphPictures.open(tmp_path)
    with pytest.raises(DataError, match=r"pictures-64/index\.json is missing"):
        GlyphPictures.open(tmp_path, 64)


def test_pictures_of_drawings_that_were_replaced_do_not_count(build: Build, tmp_path: Path) -> None:
    build(tmp_path, size=(16, 32))
    reports: list[str] = []
    assert build(tmp_path, size=32, without=["painted"], report=reports.append).sizes == [32]
    assert any("pictures of 16 px were made from other drawings" in line for line in reports)
    assert len(GlyphPictures.open(tmp_path).records) == len(FRUIT) + 2


def test_new_records_do_not_draw_the_pictures_again(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "pictures-32").iterdir()}
    monkeypatch.setattr(glyph, "RECORDS_VERSION", glyph.RECORDS_VERSION + 1)
    assert build(tmp_path).built
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "pictures-32").iterdir()}
    assert after == before


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


def test_a_killed_build_does_not_look_finished_and_goes_on_where_it_stopped(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "PACK", 4)
    build(tmp_path / "whole")
    drawn: list[str] = []
    draw = Drawing.draw

    def killed(self: Drawing, size: int) -> np.ndarray:
        drawn.append(self.record.id)
        if len(drawn) == 11:
            raise KeyboardInterrupt
        return draw(self, size)

    with monkeypatch.context() as patch:
        patch.setattr(Drawing, "draw", killed)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "parts")
        with pytest.raises(DataError, match=r"summary\.json is missing"):
            GlyphPictures.open(tmp_path / "parts")
        build(tmp_path / "parts")
    # Two packs of four and three were finished; the other four of eleven are drawn again.
    assert len(drawn) == DRAWN + 4
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


@pytest.mark.parametrize("broken", ["attribution_text", "write_index", "weighted"])
def test_a_build_that_breaks_does_not_look_finished_and_can_be_done_again(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    build(tmp_path)
    with monkeypatch.context() as patch:

        def fail(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(glyph, broken, fail)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path, without=["painted"])
    with pytest.raises(DataError, match=r"summary\.json is missing"):
        GlyphPictures.open(tmp_path)
    assert build(tmp_path, without=["painted"]).built
    assert len(GlyphPictures.open(tmp_path).records) == len(FRUIT) + 2


def test_drawings_alone_give_the_same_pictures_without_any_package(
    build: Build, tmp_path: Path
) -> None:
    build(tmp_path / "first")
    drawings = tmp_path / "first" / DRAWINGS
    with tarfile.open(tmp_path / "drawings.tar", "w") as tar:
        tar.add(drawings, "drawings")
    nowhere = tmp_path / "nowhere"
    build(tmp_path / "folder", drawings=drawings, packages=nowhere)
    build(tmp_path / "tar", drawings=tmp_path / "drawings.tar", packages=nowhere)
    first = files(tmp_path / "first")
    assert files(tmp_path / "tar") == first
    made = {name: data for name, data in first.items() if not name.startswith(DRAWINGS)}
    assert files(tmp_path / "folder") == made


def test_drawings_that_changed_on_their_way_are_refused(build: Build, tmp_path: Path) -> None:
    build(tmp_path / "first")
    drawings = tmp_path / "first" / DRAWINGS
    path = drawings / "emoji-000.rasters"
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"emoji-000\.rasters is damaged"):
        build(tmp_path / "second", drawings=drawings)
    path.unlink()
    with pytest.raises(DataError, match="row emoji is damaged"):
        build(tmp_path / "second", drawings=drawings)
    with pytest.raises(DataError, match="holds no drawings"):
        build(tmp_path / "second", drawings=tmp_path)


def test_a_hostile_tar_of_drawings_has_nowhere_to_go(build: Build, tmp_path: Path) -> None:
    build(tmp_path / "first")
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        link = tarfile.TarInfo("drawings/emoji-000.rasters")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        tar.add(tmp_path / "first/drawings/emoji.done.json", "../../escaped.done.json")
        tar.add(tmp_path / "first/drawings/emoji.done.json", "drawings/run.sh")
    with pytest.raises(DataError, match="holds no drawings"):
        build(tmp_path / "deep/second", drawings=tmp_path / "bad.tar")
    assert sorted(files(tmp_path / "deep")) == ["second/drawings/escaped.done.json"]
    (tmp_path / "bad.tar").write_text("no tar")
    with pytest.raises(DataError, match=r"cannot be read as a \.tar"):
        build(tmp_path / "third", drawings=tmp_path / "bad.tar")


def test_a_limit_spreads_over_all_rows(build: Build, tmp_path: Path) -> None:
    summary = build(tmp_path, limit=6)
    assert summary.rows["painted"] == 3
    assert summary.rows["emoji"] + summary.blank + summary.failed == 3
    names = {r.name for r in GlyphPictures.open(tmp_path).records if r.row == "painted"}
    assert names == set(PAINTED)  # not the first three, but from all over
    least = build(tmp_path, limit=1)
    assert least.rows == {"painted": 1}
    assert list(least.shares) == ["painted"]


@pytest.mark.parametrize("name", ["size", "workers", "limit"])
def test_numbers_below_one_are_refused(build: Build, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}=0 is less than 1"):
        build(tmp_path / "out", **{name: 0})
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_row_is_refused_by_name(build: Build, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no row 'emojis'") as raised:
        build(tmp_path / "out", without=["emojis"])
    assert "emoji, painted" in str(raised.value)
    with pytest.raises(ConfigError, match="no row is left"):
        build(tmp_path / "out", without=["emoji", "painted"])


def test_a_package_that_is_not_the_pinned_one_stops_the_build(
    build: Build, tmp_path: Path, packages: Path
) -> None:
    shutil.copytree(packages, tmp_path / "other")
    (tmp_path / "other/fruit-1.tgz").write_text("{}")
    with pytest.raises(DataError, match="is pinned"):
        build(tmp_path / "out", packages=tmp_path / "other")
    assert not (tmp_path / "out" / SUMMARY).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "noto/plum"}, "ids occur twice, first noto/plum"),
        ({"source": "x"}, "credited for x"),
    ],
)
def test_a_row_that_contradicts_itself_is_refused(
    build: Build, tmp_path: Path, packages: Path, monkeypatch: pytest.MonkeyPatch,
    change: dict[str, str], message: str,
) -> None:  # fmt: skip
    read = EmojiRow.read

    def changed(row: EmojiRow, archives: Any) -> tuple[list[Art], list[Any]]:
        art, credits = read(row, archives)
        return [replace(art[0], **change), *art[1:]], credits

    monkeypatch.setattr(EmojiRow, "read", changed)
    with pytest.raises(DataError, match=message):
        build(tmp_path)


def test_a_renderer_that_panics_costs_one_drawing(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PanicException(BaseException):
        pass

    class Renderer:
        def svg_to_bytes(self, svg_string: str, **_: object) -> bytes:
            if "#7d3cc9" in svg_string:
                raise PanicException("index out of bounds")
            return real.svg_to_bytes(svg_string=svg_string, skip_system_fonts=True)

    real = rasterize.load_renderer()
    monkeypatch.setattr(rasterize, "load_renderer", Renderer)
    summary = build(tmp_path, without=["painted"])
    assert summary.failed == 2
    assert "index out of bounds" in summary.failures["noto/plum"]


def test_drawings_are_vectors_and_small_files(build: Build, tmp_path: Path) -> None:
    summary = build(tmp_path)
    folder = tmp_path / DRAWINGS
    assert summary.drawings_bytes == sum(
        path.stat().st_size for path in folder.iterdir() if not path.name.endswith(".done.json")
    )
    lines = lzma.decompress((folder / "emoji-000.drawings.xz").read_bytes()).decode().splitlines()
    assert "<circle" in lines[0]
    kinds = [json.loads(line) for line in lines]
    assert [len(line) for line in kinds] == [4] * len(FRUIT) + [3, 3]
    rasters = (folder / "emoji-000.rasters").read_bytes()
    starts = [rasters[start : start + 4] for _, start, _ in kinds[-2:]]
    assert starts == [b"RIFF", b"RIFF"]  # the PNG became a WebP


@pytest.mark.parametrize("name", [f"pictures-32/{INDEX}", RECORDS, SUMMARY])
def test_a_missing_file_is_named_by_the_reader(build: Build, tmp_path: Path, name: str) -> None:
    build(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=r"is missing|these sizes: none"):
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
