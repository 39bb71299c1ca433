from __future__ import annotations

import importlib
import json
import logging
import re
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from sanakit.data.samples import Place, to_line
from sanakit.data.sources import rows
from sanakit.data.sources.captions import CaptionPolicy
from sanakit.data.sources.opening import open_source
from sanakit.data.sources.places import read_place
from sanakit.data.sources.rows import open_rows
from sanakit.errors import DataError
from tiny_sources import everything, fill, png, refusals, samples, texts


def captions_of(path: Path, policy: CaptionPolicy | None = None) -> dict[str, dict[str, str]]:
    source = open_source(path, captions=policy or CaptionPolicy())
    return {id: texts(sample) for id, sample in samples(source).items()}


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
