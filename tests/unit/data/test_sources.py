"""Places that are safe, folders of pictures, and tables that name or hold them."""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from sanakit.data.samples import Place, to_line
from sanakit.data.sources import places, rows
from sanakit.data.sources.captions import CaptionPolicy
from sanakit.data.sources.names import safe_name, words_of
from sanakit.data.sources.opening import open_source
from sanakit.data.sources.parquet_pages import chunks_of, unpacked_by_pages
from sanakit.data.sources.places import read_place
from sanakit.data.sources.rows import open_rows
from sanakit.errors import ConfigError, DataError
from tiny_sources import everything, fill, png, refusals, samples, texts

HOSTILE = [
    "",
    ".",
    "..",
    "/",
    "/etc/passwd",
    "../secret",
    "in/../../secret",
    "in/..",
    "./../secret",
    "..\\secret",
    "in\\..\\..\\secret",
    "C:\\secret",
    "C:secret",
    "\\\\server\\share",
    "//server/share",
    "out",
    "in/out",
    "folder/secret",
    "loop",
    "up/secret",
    "a\0b",
    "in/a\0/../../secret",
    "caf\udce9",
    "x" * 5000,
    "/proc/self/environ",
    "~/secret",
    "pipe",
    "in",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a secret beside it and links that lead there."""
    base = fill(tmp_path_factory.mktemp("places"), {"secret": b"SECRET", "deep/secret": b"SECRET"})
    root = fill(base / "root", {"a": b"0123456789", "in/b": b"inside", ".hidden": b"inside"})
    (root / "out").symlink_to(base / "secret")
    (root / "in/out").symlink_to("../../secret")
    (root / "folder").symlink_to(base / "deep")
    (root / "up").symlink_to("..")
    (root / "loop").symlink_to("loop")
    (root / "fine").symlink_to("in/b")
    os.mkfifo(root / "pipe")
    return root


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("kind", ["file", "span"])
def test_hostile_names_are_refused(root: Path, name: str, kind: str) -> None:
    with pytest.raises(DataError):
        read_place(root, Place(kind=kind, file=name, length=2))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["pipe", "in"])
def test_what_is_no_regular_file_is_not_opened_for_reading(root: Path, name: str) -> None:
    with pytest.raises(DataError, match="is not a regular file"):
        read_place(root, Place(kind="file", file=name))


PARTS = st.sampled_from(
    ["..", ".", "", "/", "\\", "in", "a", "b", "out", "up", "folder", "secret", "fine", "\0", "C:"]
)


@given(st.lists(st.tuples(PARTS, st.sampled_from(["/", "\\", "", "//"])), max_size=7))
def test_no_name_reads_a_byte_outside(root: Path, parts: list[tuple[str, str]]) -> None:
    name = "".join(part + separator for part, separator in parts)
    try:
        data = read_place(root, Place(kind="file", file=name))
    except DataError:
        return
    assert data in (b"0123456789", b"inside")
    assert ".." not in safe_name(name).split("/")


@given(st.integers(-5, 20), st.integers(-5, 20))
def test_a_span_is_that_span_or_refused(root: Path, start: int, length: int) -> None:
    place = Place(kind="span", file="a", start=start, length=length)
    if start >= 0 and length >= 0 and start + length <= 10:
        assert read_place(root, place) == b"0123456789"[start : start + length]
    else:
        with pytest.raises(DataError, match="cut short or changed"):
            read_place(root, place)


def test_links_inside_are_followed(root: Path) -> None:
    assert read_place(root, Place(kind="file", file="fine")) == b"inside"
    linked = root.parent / "linked"
    linked.symlink_to(root)
    assert read_place(linked, Place(kind="file", file="in/b")) == b"inside"


def test_a_file_too_large_for_a_picture_is_not_read(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (root / "large").open("wb") as file:
        file.truncate(places.LARGEST + 1)
    with pytest.raises(DataError, match="are more than"):
        read_place(root, Place(kind="file", file="large"))
    monkeypatch.setattr(places, "LARGEST", 9)
    with pytest.raises(DataError, match="10 bytes are more than 9"):
        read_place(root, Place(kind="file", file="a"))
    assert read_place(root, Place(kind="span", file="a", length=9)) == b"012345678"


def captions_of(folder: Path, policy: CaptionPolicy | None = None) -> dict[str, dict[str, str]]:
    source = open_source(folder, captions=policy or CaptionPolicy())
    return {id: texts(sample) for id, sample in samples(source).items()}


def test_a_folder_gives_its_pictures_in_order_of_their_paths(tmp_path: Path) -> None:
    names = [
        "b.PNG",
        "a.jpeg",
        "deep/er/c.webp",
        "deep/d.GIF",
        "e.avif",
        "f.tiff",
        "g.bmp",
        "h.jpg",
    ]
    fill(tmp_path, {name: png(number) for number, name in enumerate(names)})
    source = open_source(tmp_path, licence="CC0-1.0")
    found = samples(source)
    assert source.kind == "folder"
    assert list(found) == sorted(name.rsplit(".", 1)[0] for name in names)
    for number, name in enumerate(names):
        sample = found[name.rsplit(".", 1)[0]]
        assert sample.place.file == name
        assert sample.licence == "CC0-1.0"
        assert read_place(source.root, sample.place) == png(number)


def test_files_beside_a_picture_are_its_captions(tmp_path: Path) -> None:
    fill(tmp_path, {f"{name}.jpg": png() for name in "abcdefgh"})
    fill(
        tmp_path,
        {
            "a.txt": "\ufeffone line\r\n",
            "b.txt": "first\n\n second \n",
            "c.caption": "by kohya",
            "d.json": json.dumps("a text"),
            "e.json": json.dumps({"caption": "main", "caption_llava": "other", "author": "no"}),
            "f.json": json.dumps({"VILA-3B": "v", "InternVL2": "i", "width": 5}),
            "g.jpg.txt": "with both endings",
            "h.JSON": json.dumps({"captions": [{"text": "t", "captioner": "m", "score": 31.5}]}),
        },
    )
    assert captions_of(tmp_path) == {
        "a": {"original": "one line"},
        "b": {"original": "first", "original-2": "second"},
        "c": {"original": "by kohya"},
        "d": {"original": "a text"},
        "e": {"original": "main", "caption_llava": "other"},
        "f": {"VILA-3B": "v", "InternVL2": "i"},
        "g": {"original": "with both endings"},
        "h": {"m": "t"},
    }
    assert samples(open_source(tmp_path))["h"].captions[0].score == 31.5


def test_each_line_of_a_text_is_a_caption(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": png(), "a.txt": "one\r\n\n two \n"})
    (sample,) = samples(open_source(tmp_path)).values()
    assert [caption.text for caption in sample.captions] == ["one", "two"]


@pytest.mark.parametrize(
    "table",
    [
        ("captions.jsonl", '{"file_name": "in/a.png", "text": "A"}\n\n{"file_name": "b.png"}\n'),
        ("metadata.csv", '\ufefffile_name,text\nin/a.png,A\nb.png,""\n'),
        ("Metadata.CSV", "file_name;text\nin\\a.png;A\nb.png;\n"),
        ("metadata.json", '{"in/a.png": "A", "b.png": ""}'),
        ("in/metadata.jsonl", '{"file_name": "a.png", "text": "A"}\n'),
        ("meta_cap.json", '{"in/a": {"caption": "A"}, "b.png": {}}'),
        (
            "captions.json",
            '{"images": [{"id": 7, "file_name": "in/a.png"}, {"id": 8, "file_name": "b.png"}],'
            ' "annotations": [{"image_id": 7, "caption": "A"}]}',
        ),
    ],
)
def test_a_table_in_the_folder_gives_captions_by_file_name(
    tmp_path: Path, table: tuple[str, str]
) -> None:
    fill(tmp_path, {"in/a.png": png(), "b.png": png(1), table[0]: table[1]})
    source = open_source(tmp_path)
    assert source.kind == "folder"
    assert {id: texts(s) for id, s in samples(source).items()} == {
        "in/a": {"original": "A"},
        "b": {},
    }
    assert refusals(source) == []


def test_a_row_about_a_missing_picture_is_refused_and_a_damaged_one_too(tmp_path: Path) -> None:
    lines = ['{"file_name": "gone.png", "text": "x"}', "{", '{"file_name": "../a.png"}', ""]
    fill(tmp_path, {"a.png": png(), "metadata.jsonl": "\n".join(lines)})
    assert refusals(open_source(tmp_path)) == [
        ("metadata.jsonl row 0", "unreadable"),
        ("metadata.jsonl row 1", "bad captions"),
        ("metadata.jsonl row 2", "unreadable"),
    ]


def test_the_list_of_nvlabs_says_which_pictures_count(tmp_path: Path) -> None:
    fill(tmp_path, {f"{name}.png": png() for name in "abc"})
    fill(tmp_path, {"a.txt": "A", "meta_data.json": '{"img_names": ["a", "b.png", "gone"]}'})
    source = open_source(tmp_path)
    assert list(samples(source)) == ["a", "b"]
    assert refusals(source) == [("c.png", "not listed"), ("gone", "unreadable")]


def test_a_caption_that_is_not_utf8_is_refused_and_its_picture_stays(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": png(), "a.txt": b"caf\xe9", "a.json": '"fine"', "b.png": png()})
    fill(tmp_path, {"b.json": "{" * 100_000, "c.png": png(), "c.txt": "x".encode("utf-16")})
    source = open_source(tmp_path)
    assert {id: texts(s) for id, s in samples(source).items()} == {
        "a": {"original": "fine"},
        "b": {},
        "c": {},
    }
    assert refusals(source) == [(id, "bad captions") for id in "abc"]
    for entry in everything(source):
        to_line(entry).encode()


def test_two_pictures_of_one_name_are_one_and_a_duplicate_key(tmp_path: Path) -> None:
    fill(tmp_path, {"tom.jpg": png(1), "tom.png": png(2)})
    source = open_source(tmp_path)
    assert samples(source)["tom"].place.file == "tom.jpg"
    assert refusals(source) == [("tom", "duplicate key")]


def test_names_of_files_are_captions_only_where_nothing_else_is(tmp_path: Path) -> None:
    fill(tmp_path, {"red_apple-2.jpg": png(), "IMG_1234.jpg": png()})
    expected = {"red_apple-2": {"file name": "red apple"}, "IMG_1234": {}}
    assert captions_of(tmp_path) == expected
    fill(tmp_path, {"IMG_1234.txt": "a dog"})
    assert captions_of(tmp_path) == {"red_apple-2": {}, "IMG_1234": {"original": "a dog"}}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("red_apple-2.jpg", "red apple"),
        ("2024-05-01 birthday cake (3).png", "birthday cake"),
        ("MyBlueBoat.webp", "My Blue Boat"),
        ("a-cat.png", "a cat"),
        ("Stra\N{COMBINING DIAERESIS}nde.png", "Str\N{LATIN SMALL LETTER A WITH DIAERESIS}nde"),
        ("\u732b.jpg", "\u732b"),
        ("BMW_engine.jpg", "BMW engine"),
        ("DSC00012.JPG", ""),
        ("IMG-20240101-WA0003.jpg", ""),
        ("image_001.png", ""),
        ("Screenshot from 2024.png", ""),
        ("3f2a9bd04c.png", ""),
        ("b7f3e-cat.png", ""),
        ("xkcdqrst.png", ""),
        ("12345.png", ""),
        ("photo copy.png", ""),
    ],
)
def test_a_name_reads_as_words_or_not(name: str, words: str) -> None:
    assert words_of(name) == words


def test_folders_of_kohya_name_what_they_hold(tmp_path: Path) -> None:
    fill(tmp_path, {"10_sks dog/1.png": png(), "10_sks dog/2.png": png(), "2.png": png()})
    fill(tmp_path, {"10_sks dog/2.txt": "sits"})
    assert captions_of(tmp_path) == {
        "10_sks dog/1": {"folder name": "sks dog"},
        "10_sks dog/2": {"original": "sits"},
        "2": {},
    }


def test_a_policy_replaces_or_drops_the_captions(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": png(), "a.json": '{"caption": "A", "long": "B", "short": "C"}'})
    mine = CaptionPolicy(user="a photo of my dog")
    assert captions_of(tmp_path, mine) == {"a": {"user": "a photo of my dog"}}
    assert captions_of(tmp_path, CaptionPolicy(use="none")) == {"a": {}}
    with pytest.raises(ConfigError, match="replaces the captions"):
        CaptionPolicy(user="x", use="none")
    with pytest.raises(ConfigError, match="use='some' is not one of"):
        CaptionPolicy(use="some")  # type: ignore[arg-type]


def test_units_cut_the_same_listing_and_know_when_it_changes(tmp_path: Path) -> None:
    fill(tmp_path, {f"{number}.png": png() for number in range(7)})
    fill(tmp_path, {"3.txt": "three"})
    source, again = (open_source(tmp_path, unit_size=3) for _ in range(2))
    assert source.units() == ["00000", "00001", "00002"]
    assert [[e.id for e in source.read(unit)] for unit in source.units()] == [
        ["0", "1", "2"],
        ["3", "4", "5"],
        ["6"],
    ]
    before = [source.made_from(unit) for unit in source.units()]
    assert len(set(before)) == 3
    assert before == [again.made_from(unit) for unit in again.units()]
    os.utime(tmp_path / "3.txt", ns=(1, 1))
    changed = open_source(tmp_path, unit_size=3)
    same = [
        changed.made_from(unit) == old for unit, old in zip(source.units(), before, strict=True)
    ]
    assert same == [True, False, True]
    other = open_source(tmp_path, unit_size=3, licence="MIT")
    assert other.made_from("00000") != before[0]


def test_what_is_no_picture_of_the_user_is_left_out_or_said(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": png(), "._a.png": b"x", ".git/b.png": png(), "notes.doc": "x"})
    fill(tmp_path, {"__MACOSX/c.png": png(), "d.heic": b"x", "clip.mov": b"x"})
    fill(tmp_path, {"out/set.json": "{}", "out/scan/x": "", "out/report/d.png": png()})
    os.mkfifo(tmp_path / "pipe.png")
    source = open_source(tmp_path)
    assert list(samples(source)) == ["a"]
    assert refusals(source) == [
        ("clip.mov", "unsupported format"),
        ("d.heic", "unsupported format"),
        ("pipe.png", "unreadable"),
    ]


def test_links_and_names_that_lead_out_are_refused(tmp_path: Path) -> None:
    outside = fill(tmp_path / "outside", {"secret.png": png(9), "deep/x.png": png()})
    root = fill(tmp_path / "root", {"a.png": png(), "b\\c.png": png()})
    (root / "in.png").symlink_to("a.png")
    (root / "out.png").symlink_to(outside / "secret.png")
    (root / "folder").symlink_to(outside)
    (root / "loop").symlink_to(root)
    (root / "a.txt").symlink_to(outside / "secret.png")
    (root / "nothing.png").symlink_to(root / "gone.png")
    with open(os.fsencode(root) + b"/caf\xe9.png", "wb") as file:
        file.write(png())
    source = open_source(root)
    assert list(samples(source)) == ["a", "in"]
    assert refusals(source) == [
        ("b\\c.png", "unsafe name"),
        ("caf\\udce9.png", "unsafe name"),
        ("folder", "unsafe name"),
        ("nothing.png", "unreadable"),
        ("out.png", "unsafe name"),
    ]
    for entry in everything(source):
        to_line(entry).encode()


def test_what_cannot_be_opened_says_what_was_seen_and_what_would_work(tmp_path: Path) -> None:
    fill(tmp_path, {"videos/a.mp4": b"", "videos/b.mp4": b"", "videos/n.txt": "x"})
    fill(
        tmp_path, {"set/set.json": "{}", "set/scan/x": "", "one.png": png(), "x.zip": b"", "y": b""}
    )
    fill(tmp_path, {"rows/captions.csv": "url,text\nhttp://x,y\n", "list.csv": "a.png,a cat\n"})
    (tmp_path / "empty").mkdir()
    for name, message, hint in [
        ("videos", "2 .mp4, 1 .txt", ".mp4 is not read"),
        ("vidoes", "does not exist", "did you mean .*videos"),
        ("empty", "no files", "WebDataset"),
        ("set", "is a training set already", "shards"),
        ("one.png", "is one picture", "folder"),
        ("x.zip", ".zip is not read", "unpack"),
        ("y", "cannot be told", "a folder of pictures"),
        ("rows", "1 .csv", "name it: .*captions.csv"),
        ("rows/captions.csv", "no column holds pictures", "img2dataset"),
        ("list.csv", "the first line names a picture", "file_name,text"),
    ]:
        with pytest.raises(DataError, match=message) as caught:
            open_source(tmp_path / name)
        assert caught.value.hint is not None
        assert caught.match(hint)


def with_bytes(count: int) -> pa.Table:
    pictures = [{"bytes": png(number), "path": f"{number}.png"} for number in range(count)]
    return pa.table({"image": pictures, "text": [f"text {number}" for number in range(count)]})


TABLES = [
    ("t.csv", "file_name,caption\npics/a.png,A\npics/b.png,\n"),
    ("t.tsv", "caption\timage\nA\tpics\\a.png\n\tpics/b.png\n"),
    ("t.jsonl", '{"image": "pics/a.png", "prompt": "A"}\n{"image": "pics/b.png"}\n'),
    ("t.json", '[{"photo_of": "pics/a.png", "text": "A"}, {"photo_of": "pics/b"}]'),
]


@pytest.mark.parametrize("table", TABLES)
def test_rows_that_name_files_are_samples(tmp_path: Path, table: tuple[str, str]) -> None:
    fill(tmp_path, {"pics/a.png": png(1), "pics/b.png": png(2), table[0]: table[1]})
    source = open_source(tmp_path / table[0])
    assert source.kind == "table"
    found = samples(source)
    assert {id: texts(s) for id, s in found.items()} == {"pics/a": {"original": "A"}, "pics/b": {}}
    # Either root is what somebody who only has the user's path would say.
    assert read_place(source.root, found["pics/b"].place) == png(2)
    assert read_place(tmp_path / table[0], found["pics/b"].place) == png(2)


def test_a_parquet_table_names_files_as_well(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": png()})
    parquet.write_table(
        pa.table({"path": [str(tmp_path / "a.png")], "text": ["A"], "license": ["MIT"]}),
        tmp_path / "t.parquet",
    )
    found = samples(open_source(tmp_path / "t.parquet", licence="CC0-1.0"))
    assert found["a"].place == Place(kind="file", file="a.png")
    assert found["a"].licence == "MIT"


def test_rows_about_one_file_are_one_sample_with_all_captions(tmp_path: Path) -> None:
    lines = "image,caption\na.png,one\nb.png,other\na.png,two\na.png,one\n"
    fill(tmp_path, {"a.png": png(), "b.png": png(), "t.csv": lines})
    assert captions_of(tmp_path / "t.csv") == {
        "a": {"original": "one", "original-2": "two"},
        "b": {"original": "other"},
    }


def test_columns_of_captions_are_recognised(tmp_path: Path) -> None:
    row = {"file_name": "a.png", "text": "T", "caption_llava": ["L1", "L2"], "negative_prompt": "N"}
    row |= {"url": "http://x", "text_score": 3, "notes": "no"}
    fill(tmp_path, {"a.png": png(), "t.jsonl": json.dumps(row)})
    path = tmp_path / "t.jsonl"
    assert captions_of(path) == {
        "a": {"original": "T", "caption_llava": "L1", "caption_llava-2": "L2"}
    }
    assert samples(open_source(path))["a"].source == "http://x"


def test_damaged_rows_are_refused_and_the_rest_is_read(tmp_path: Path) -> None:
    lines = [
        '{"file_name": "a.png", "text": "A"}',
        '{"file_name": "b.png", "text": "caf\udce9"}'.encode("utf-8", "surrogateescape"),
        "{nonsense",
        "[1]",
        '{"file_name": "../../etc/passwd.png"}',
        '{"file_name": "/etc/passwd.png"}',
        '{"text": "no file"}',
        '{"file_name": "sub/../a.png"}',
        '{"file_name": "a.jpg", "text": "same name"}',
        '{"file_name": "c.png", "text": "\\udc80"}',
    ]
    data = b"\n".join(line.encode() if isinstance(line, str) else line for line in lines)
    fill(tmp_path, {"a.png": png(), "b.png": png(), "t.jsonl": data})
    source = open_source(tmp_path / "t.jsonl")
    assert refusals(source) == [
        ("b", "bad captions"),
        ("t.jsonl row 2", "unreadable"),
        ("t.jsonl row 3", "unreadable"),
        ("t.jsonl row 4", "unsafe name"),
        ("t.jsonl row 5", "unsafe name"),
        ("t.jsonl row 6", "unreadable"),
        ("t.jsonl row 7", "unsafe name"),
        ("a", "duplicate key"),
        ("c", "bad captions"),
    ]
    assert list(samples(source)) == ["a", "b", "c"]
    for entry in everything(source):
        to_line(entry).encode()


def test_csv_with_line_ends_in_quotes_and_broken_rows(tmp_path: Path) -> None:
    long = "x" * 200_000
    rows = f'file_name,text\na.png,"two\nlines, one"\n\nb.png,B,extra\nc.png,{long}\nd.png,D\n'
    fill(tmp_path, {"t.csv": rows})
    source = open_source(tmp_path / "t.csv", unit_size=1)
    assert {id: texts(s) for id, s in samples(source).items()} == {
        "a": {"original": "two\nlines, one"},
        "d": {"original": "D"},
    }
    assert [id for id, _ in refusals(source)] == ["t.csv row 1", "t.csv row 2"]


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.json", "t.parquet", "t.arrow"])
def test_any_stretch_of_rows_equals_that_stretch_of_all(tmp_path: Path, name: str) -> None:
    expected = [{"file_name": f"{n}.png", "text": f'say "{n}",\n\u00e9'} for n in range(11)]
    path = tmp_path / name
    if name == "t.csv":
        quoted = [row["text"].replace('"', '""') for row in expected]
        lines = [f'{n}.png,"{text}"\r\n' for n, text in enumerate(quoted)]
        fill(tmp_path, {name: "\ufefffile_name,text\r\n" + "\r\n".join(lines)})
    elif name == "t.jsonl":
        fill(tmp_path, {name: "\n \n".join(json.dumps(row) for row in expected)})
    elif name == "t.json":
        fill(tmp_path, {name: json.dumps(expected)})
    elif name == "t.parquet":
        parquet.write_table(pa.Table.from_pylist(expected), path, row_group_size=4)
    else:
        table = pa.Table.from_pylist(expected)
        with pa.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=4)
    rows = open_rows(path)
    assert len(rows) == 11
    for start in range(12):
        for stop in range(start, 13):
            assert list(rows.rows(start, stop, rows.columns)) == expected[start:stop]
    assert list(rows.rows(3, 4, ["text"])) == [{"text": expected[3]["text"]}]


def test_parquet_rows_with_bytes_are_read_by_row(tmp_path: Path) -> None:
    parquet.write_table(with_bytes(7), tmp_path / "t.parquet", row_group_size=3)
    source = open_source(tmp_path / "t.parquet", unit_size=4)
    found = samples(source)
    assert source.units() == ["00000", "00001"]
    assert list(found) == [f"{number:07d}" for number in range(7)]
    for number in (6, 0, 3, 5, 1):
        sample = found[f"{number:07d}"]
        assert texts(sample) == {"original": f"text {number}"}
        assert read_place(source.root, sample.place) == png(number)


def test_the_decoded_row_groups_that_are_kept_have_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet.write_table(with_bytes(8), tmp_path / "t.parquet", row_group_size=2)
    monkeypatch.setattr(rows, "KEPT", 1)
    monkeypatch.setattr(rows, "_decoded", type(rows._decoded)())
    for row in range(8):
        place = Place(kind="row", file="t.parquet", start=row, column="image")
        assert read_place(tmp_path, place) == png(row)
    assert len(rows._decoded) == 1
    monkeypatch.setattr(rows, "LARGEST_GROUP", 10)
    parquet.write_table(with_bytes(8), tmp_path / "large.parquet")
    with pytest.raises(DataError, match="smaller row groups"):
        open_source(tmp_path / "large.parquet")


def test_many_small_row_groups_unpack_no_more_than_the_file_can_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.parquet"
    table = pa.table({"image": [bytes(1 << 20)] * 64, "text": ["x"] * 64})
    parquet.write_table(
        table,
        path,
        compression="zstd",
        use_dictionary=False,
        row_group_size=1,
        write_statistics=False,
    )
    assert path.stat().st_size < 64 << 9
    monkeypatch.setattr(rows, "UNPACKED", 2 << 20)
    for _ in range(3):  # what was read before is not counted twice
        rows.read_cell(path, 0, "image")
        monkeypatch.setattr(rows, "_decoded", type(rows._decoded)())
    for row in range(3):
        rows.read_cell(path, row, "image")
    with pytest.raises(DataError, match="what was read of it unpacks to"):
        list(map(rows.read_cell, [path] * 64, range(64), ["image"] * 64))
    assert rows.read_cell(path, 2, "image") == bytes(1 << 20)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("typed", [False, True])
def test_a_text_that_is_stored_once_for_all_rows_is_not_unpacked_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nested: bool, typed: bool
) -> None:
    monkeypatch.setattr(rows, "UNPACKED", 1 << 20)
    text = pa.DictionaryArray.from_arrays([0] * 1000, ["x" * 10_000])
    values = text if typed else text.dictionary_decode()
    if nested:
        values = pa.ListArray.from_arrays(list(range(1001)), values)
    table = pa.table({"file_name": [f"{n}.png" for n in range(1000)], "text": values})
    parquet.write_table(table, tmp_path / "t.parquet")
    assert (tmp_path / "t.parquet").stat().st_size < 50_000
    table_rows = open_rows(tmp_path / "t.parquet")
    for _ in range(2):
        with pytest.raises(DataError, match="unpacks to more than"):
            list(table_rows.rows(0, 1, ["text"]))
        monkeypatch.setattr(rows, "_unpacked", lambda values: pytest.fail("unpacked again"))
    monkeypatch.undo()
    monkeypatch.setattr(rows, "_decoded", type(rows._decoded)())
    monkeypatch.setattr(rows, "UNPACKED", 1 << 24)
    assert len(list(open_rows(tmp_path / "t.parquet").rows(0, 1000, ["text"]))) == 1000


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("dictionary", [False, True])
def test_what_pages_unpack_to_is_what_honest_files_claim(
    tmp_path: Path, compression: str, version: str, dictionary: bool
) -> None:
    table = pa.table(
        {"text": [f"{n % 7} text" for n in range(5000)], "a.b": [{"c": n} for n in range(5000)]}
    )
    parquet.write_table(
        table,
        tmp_path / "t.parquet",
        compression=compression,
        data_page_version=version,
        use_dictionary=dictionary,
        data_page_size=1000,
        row_group_size=2000,
    )
    metadata = parquet.ParquetFile(tmp_path / "t.parquet").metadata
    for number in range(3):
        group = metadata.row_group(number)
        chunks = [group.column(i) for i in range(2)]
        told = chunks_of(tmp_path / "t.parquet")[number]
        assert [chunk.unpacked for chunk in told] == [c.total_uncompressed_size for c in chunks]
        assert [".".join(chunk.column) for chunk in told] == [c.path_in_schema for c in chunks]
        found = unpacked_by_pages(tmp_path / "t.parquet", told)
        for size, chunk in zip(found, chunks, strict=True):
            headers = chunk.total_uncompressed_size - size
            assert 0 < headers < 200 * 60
    read = list(open_rows(tmp_path / "t.parquet").rows(0, 5000, ["text", "a.b"]))
    assert read == table.to_pylist()


def test_a_parquet_file_that_lies_about_what_it_unpacks_to_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "UNPACKED", 1 << 20)
    path = tmp_path / "t.parquet"
    table = pa.table({"image": [bytes(1 << 22)], "text": ["x"]})
    parquet.write_table(table, path, compression="zstd", use_dictionary=False)

    def claimed() -> int:
        return parquet.ParquetFile(path).metadata.row_group(0).column(0).total_uncompressed_size

    whole, honest = path.read_bytes(), claimed()
    digits = [2 * honest >> 7 * place & 127 for place in range(4)]
    told = bytes(digit | 128 for digit in digits[:-1]) + bytes(digits[-1:])
    assert whole.count(told) == 1
    path.write_bytes(whole.replace(told, b"\x82\x80\x80\x00"))
    assert claimed() == 1
    with monkeypatch.context() as patch:
        patch.setattr(parquet.ParquetFile, "iter_batches", lambda *_, **__: pytest.fail("unpacked"))
        with pytest.raises(DataError, match="unpacks to more than"):
            rows.read_cell(path, 0, "image")
    assert list(open_rows(path).rows(0, 1, ["text"])) == [{"text": "x"}]


@settings(max_examples=200, deadline=None)
@given(st.integers(4, 200), st.integers(0, 255))
def test_damaged_pages_are_one_error(place: int, byte: int) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "t.parquet"
        parquet.write_table(pa.table({"text": ["some", "words"] * 20}), path)
        damaged = bytearray(path.read_bytes())
        damaged[place] = byte
        path.write_bytes(damaged)
        with suppress(DataError):
            list(open_rows(path).rows(0, 40, ["text"]))


def test_no_zero_in_a_footer_ends_the_process(tmp_path: Path) -> None:
    """Once a column of texts becomes one of truths, of which pyarrow cannot show the statistics."""
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"text": ["some", "words"] * 20}), path)
    whole = path.read_bytes()
    footer = int.from_bytes(whole[-8:-4], "little")
    for place in range(len(whole) - 8 - footer, len(whole) - 8):
        path.write_bytes(whole[:place] + b"\0" + whole[place + 1 :])
        with suppress(DataError):
            list(open_rows(path).rows(0, 40, ["text"]))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes")
@pytest.mark.parametrize("name", ["t.parquet", "t.arrow"])
def test_a_pipe_in_the_place_of_a_table_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    os.mkfifo(tmp_path / name)
    monkeypatch.setattr(parquet, "ParquetFile", lambda _: pytest.fail("opened"))
    monkeypatch.setattr(pa, "memory_map", lambda _: pytest.fail("opened"))
    with pytest.raises(DataError, match="a pipe or a device"):
        open_rows(tmp_path / name)


def test_rows_without_end_in_a_small_file_are_refused(tmp_path: Path) -> None:
    table = pa.table({"text": pa.nulls(200_000)})
    parquet.write_table(table, tmp_path / "t.parquet")
    with pa.ipc.new_stream(str(tmp_path / "t.arrow"), table.schema) as writer:
        writer.write_table(table)
    for name in ("t.parquet", "t.arrow"):
        with pytest.raises(DataError, match="200000 rows in"):
            open_rows(tmp_path / name)


@pytest.mark.parametrize("new", [pa.ipc.new_stream, pa.ipc.new_file])
@pytest.mark.parametrize("compression", [None, "zstd", "lz4"])
def test_a_compressed_arrow_file_is_unpacked_as_far_as_its_size_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new: Any, compression: str | None
) -> None:
    monkeypatch.setattr(rows, "UNPACKED", 1 << 20)
    options = pa.ipc.IpcWriteOptions(compression=compression)
    for name, length in (("small", 1 << 16), ("large", 1 << 18)):
        table = pa.table({"image": [bytes(length)] * 8, "text": ["x"] * 8})
        with new(str(tmp_path / f"{name}.arrow"), table.schema, options=options) as writer:
            writer.write_table(table, max_chunksize=3)
    assert [row["text"] for row in open_rows(tmp_path / "small.arrow").rows(0, 8, ["text"])] == [
        "x"
    ] * 8
    assert rows.read_cell(tmp_path / "small.arrow", 7, "image") == bytes(1 << 16)
    if compression is None:
        assert len(open_rows(tmp_path / "large.arrow")) == 8
        return
    monkeypatch.setattr(pa.ipc, "open_stream", lambda _: pytest.fail("unpacked"))
    with pytest.raises(DataError, match="unpacks to more than"):
        open_rows(tmp_path / "large.arrow")


def test_a_compressed_dictionary_counts_in_what_an_arrow_file_unpacks_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "UNPACKED", 1 << 20)
    text = pa.DictionaryArray.from_arrays([0], ["x" * (1 << 21)])
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(
        str(tmp_path / "t.arrow"), pa.schema({"text": text.type}), options=options
    ) as writer:
        writer.write_batch(pa.record_batch({"text": text}))
    with pytest.raises(DataError, match="unpacks to more than"):
        open_rows(tmp_path / "t.arrow")


NOTHING = pa.nulls(1 << 18)


@pytest.mark.parametrize(
    "values",
    [
        pa.DictionaryArray.from_arrays([0] * 1000, ["x" * 10_000]),
        pa.ListArray.from_arrays([0, 1 << 18], NOTHING),
        pa.FixedSizeListArray.from_arrays(NOTHING, 1 << 18),
        pa.MapArray.from_arrays([0, 1 << 18], pa.array([0] * (1 << 18), pa.int8()), NOTHING),
        pa.RunEndEncodedArray.from_arrays([1000], ["x" * 10_000]),
        pa.array(["x" * 1000], pa.string_view()),
    ],
    ids=lambda values: str(values.type)[:12],
)
def test_values_of_arrow_that_are_many_in_few_bytes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: Any
) -> None:
    monkeypatch.setattr(rows, "UNPACKED", 1 << 20)
    with pa.ipc.new_stream(str(tmp_path / "t.arrow"), pa.schema({"text": values.type})) as writer:
        writer.write_batch(pa.record_batch({"text": values}))
    found = open_rows(tmp_path / "t.arrow")
    with pytest.raises(DataError, match=r"unpacks to more than|are not read"):
        list(found.rows(0, 1000, ["text"]))


def test_an_arrow_file_that_lists_other_batches_than_it_holds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.arrow"
    table = pa.table({"text": ["x"] * 8})
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
    whole = path.read_bytes()
    begins = [found.start() for found in re.finditer(b"\xff\xff\xff\xff", whole)]
    for damaged in (whole[:-1], whole[: begins[4]] + b"\xff\xff\xff\xff" + bytes(4) + whole[-500:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"t\.arrow"):
            open_rows(path)
    ended = bytearray(whole)
    ended[begins[4] + 4 : begins[4] + 8] = bytes(4)
    path.write_bytes(ended)
    with pytest.raises(DataError, match="not those that it lists"):
        open_rows(path)


def test_a_folder_of_parquet_files_is_one_table(tmp_path: Path) -> None:
    for name in ("data/train-00000-of-00002", "data/train-00001-of-00002"):
        fill(tmp_path, {f"{name}.md": ""})
        parquet.write_table(with_bytes(2), tmp_path / f"{name}.parquet")
    found = samples(open_source(tmp_path))
    assert list(found)[1:3] == [
        "data/train-00000-of-00002/0000001",
        "data/train-00001-of-00002/0000000",
    ]


def test_an_id_column_names_rows_and_repeated_ids_are_refused(tmp_path: Path) -> None:
    table = with_bytes(3).append_column("id", pa.array([5, 6, 5]))
    parquet.write_table(table, tmp_path / "t.parquet")
    source = open_source(tmp_path / "t.parquet")
    assert list(samples(source)) == ["5", "6"]
    assert refusals(source) == [("5", "duplicate key")]


def test_rows_without_a_picture_and_rows_that_point_outside_cannot_be_read(tmp_path: Path) -> None:
    fill(tmp_path, {"secret.png": png(9), "in/inside.png": png(3)})
    pictures = [
        {"bytes": None, "path": "inside.png"},
        {"bytes": None, "path": "../secret.png"},
        {"bytes": None, "path": str(tmp_path / "secret.png")},
        {"bytes": b"", "path": None},
        None,
    ]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    parquet.write_table(pa.table({"image": pa.array(pictures, kind)}), tmp_path / "in/t.parquet")
    source = open_source(tmp_path / "in/t.parquet")
    places = [sample.place for sample in samples(source).values()]
    assert read_place(source.root, places[0]) == png(3)
    for place in places[1:]:
        with pytest.raises(DataError, match=r"unsafe name|holds no picture"):
            read_place(source.root, place)
    with pytest.raises(DataError, match="no row 99"):
        read_place(source.root, Place(kind="row", file="t.parquet", start=99, column="image"))


def test_captions_of_parquet_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    raw = pa.array([b"fine", b"caf\xe9"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    table = with_bytes(2).set_column(1, "text", text)
    parquet.write_table(table, tmp_path / "t.parquet")
    source = open_source(tmp_path / "t.parquet")
    assert [texts(sample) for sample in samples(source).values()] == [{"original": "fine"}, {}]
    assert refusals(source) == [("0000001", "bad captions")]


@pytest.mark.parametrize("splits", [False, True])
def test_datasets_saved_on_disk_are_read_as_the_library_reads_them(
    tmp_path: Path, splits: bool
) -> None:
    logging.getLogger("datasets").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows: dict[str, list[Any]] = {
        "image": [{"bytes": png(number), "path": None} for number in range(5)],
        "text": [f"text {number}" for number in range(5)],
    }
    made = datasets.Dataset.from_dict(rows, features=features)
    saved = datasets.DatasetDict(train=made, test=made) if splits else made
    saved.save_to_disk(str(tmp_path / "saved"))
    source = open_source(tmp_path / "saved")
    assert source.kind == "hugging-face"
    loaded = datasets.load_from_disk(str(tmp_path / "saved"))
    parts = [loaded["train"], loaded["test"]] if splits else [loaded]
    expected = [
        (row["image"]["bytes"], row["text"])
        for part in parts
        for row in part.cast_column("image", datasets.Image(decode=False))
    ]
    found = samples(source).values()
    assert [(read_place(source.root, s.place), texts(s)["original"]) for s in found] == expected


def test_a_saved_dataset_that_names_files_elsewhere_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, {"saved/state.json": json.dumps({"_data_files": [{"filename": "../x.arrow"}]})})
    with pytest.raises(DataError, match="leads upwards"):
        open_source(tmp_path / "saved")
    fill(tmp_path, {"saved/state.json": "{}"})
    with pytest.raises(DataError, match="looks like a saved Hugging Face dataset"):
        open_source(tmp_path / "saved")


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow", "t.json", "t.jsonl", "t.csv"])
def test_a_damaged_table_is_one_error(tmp_path: Path, name: str) -> None:
    fill(tmp_path, {name: b"\x89nonsense\0" * 20})
    with pytest.raises(DataError, match=re.escape(str(tmp_path / name))):
        open_source(tmp_path / name)


def test_without_pyarrow_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet.write_table(with_bytes(1), tmp_path / "t.parquet")
    for name in [name for name in sys.modules if name.split(".")[0] == "pyarrow"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError):
        importlib.import_module("pyarrow")
    with pytest.raises(DataError, match=r'needs the package pyarrow(.|\n)*"sanakit\[data\]"'):
        open_source(tmp_path / "t.parquet")


NFC, NFD = "caf\u00e9", "cafe\u0301"


@pytest.mark.parametrize(("picture_name", "text_name"), [(NFC, NFD), (NFD, NFC), (NFC, NFC)])
@pytest.mark.parametrize("how", ["txt", "json", "csv", "bare csv"])
def test_names_are_the_same_whether_an_accent_is_one_sign_or_two(
    tmp_path: Path, picture_name: str, text_name: str, how: str
) -> None:
    (tmp_path / f"{picture_name}.png").write_bytes(png(1))
    if how == "txt":
        (tmp_path / f"{text_name}.txt").write_text("coffee")
    elif how == "json":
        (tmp_path / f"{text_name}.png.json").write_text('{"caption": "coffee"}')
    else:
        name = f"{text_name}.png" if how == "csv" else text_name
        (tmp_path / "metadata.csv").write_text(f"file_name,text\n{name},coffee\n", "utf-8")
    source = open_source(tmp_path)
    assert [s.captions[0].text for s in samples(source).values()] == ["coffee"]
    assert refusals(source) == []


def test_a_text_in_a_pictures_own_spelling_is_no_other_pictures(tmp_path: Path) -> None:
    for name in (NFC, NFD):
        (tmp_path / f"{name}.png").write_bytes(png(1))
    (tmp_path / f"{NFD}.txt").write_text("the second")
    found = samples(open_source(tmp_path))
    assert [c.text for c in found[NFD].captions] == ["the second"]
    assert found[NFC].captions == ()


@pytest.mark.parametrize("name", ["loop.png", "a.txt", "ring.jpg"])
def test_a_link_to_itself_is_one_line_of_the_report(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    if name == "ring.jpg":
        (tmp_path / name).symlink_to("back")
        (tmp_path / "back").symlink_to(name)
    else:
        (tmp_path / name).symlink_to(name)
    source = open_source(tmp_path)
    assert list(samples(source)) == ["a"]
    assert refusals(source) == [(name, "unreadable")]


def test_paragraphs_are_one_caption_where_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "a.txt").write_text("A boat.\n\nIt is red.\n")
    each = samples(open_source(tmp_path))["a"]
    assert [c.text for c in each.captions] == ["A boat.", "It is red."]
    whole = samples(open_source(tmp_path, captions=CaptionPolicy(use="whole")))["a"]
    assert [c.text for c in whole.captions] == ["A boat.\n\nIt is red."]
    with pytest.raises(ConfigError, match="no other choice"):
        CaptionPolicy(use="whole", user="one for all")
