from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sanakit.data.samples import to_line
from sanakit.data.sources.captions import CaptionPolicy
from sanakit.data.sources.names import words_of
from sanakit.data.sources.opening import open_source
from sanakit.data.sources.places import read_place
from sanakit.errors import ConfigError, DataError
from tiny_sources import everything, fill, png, refusals, samples, texts


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
