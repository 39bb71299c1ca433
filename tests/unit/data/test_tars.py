"""Tars of WebDataset, and NVlabs' layout of them."""

from __future__ import annotations

import io
import json
import os
import struct
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from webdataset.tariterators import group_by_keys, tar_file_iterator

from sanakit.data.samples import Caption, Refusal, Sample, to_line
from sanakit.data.shards import Index, ShardFile
from sanakit.data.sources.captions import CaptionPolicy
from sanakit.data.sources.opening import open_source
from sanakit.data.sources.places import read_place
from sanakit.data.sources.tars import index_tar
from sanakit.data.sources.wids import write_wids
from sanakit.errors import DataError
from tiny_sources import everything, fill, png, refusals, samples, tar, texts


def numbered(count: int) -> list[tuple[str, bytes | str]]:
    return [
        member
        for number in range(count)
        for member in ((f"{number:03d}.png", png(number)), (f"{number:03d}.txt", f"text {number}"))
    ]


def test_a_tar_gives_its_keys_with_all_their_captions(tmp_path: Path) -> None:
    members: list[tuple[str, bytes | str]] = [
        ("./000.jpg", png(0)),
        ("000.txt", "T"),
        ("000.json", json.dumps({"caption": "T", "url": "http://x", "license": "MIT"})),
        ("sub.v1/001.PNG", png(1)),
        ("sub.v1/001.cls", "tabby cat"),
        ("sub.v1/001.llava.txt", "L"),
        ("002.webp", png(2)),
        ("002.cls", "17"),
        ("003.gif", png(3)),
    ]
    tar(tmp_path / "shard-0.tar", members)
    source = open_source(tmp_path, licence="CC0-1.0")
    assert source.kind == "webdataset"
    found = samples(source)
    assert {id: texts(sample) for id, sample in found.items()} == {
        "shard-0/000": {"original": "T"},
        "shard-0/sub.v1/001": {"cls": "tabby cat", "llava": "L"},
        "shard-0/002": {},
        "shard-0/003": {},
    }
    assert [read_place(source.root, s.place) for s in found.values()] == [png(n) for n in range(4)]
    assert (found["shard-0/000"].licence, found["shard-0/000"].source) == ("MIT", "http://x")
    assert found["shard-0/002"].licence == "CC0-1.0"
    assert everything(open_source(tmp_path / "shard-0.tar")) != []


def test_the_webdataset_library_reads_the_same(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for number in range(5):
            sample = {"__key__": f"k{number}", "png": png(number), "txt": f"text {number}"}
            writer.write({**sample, "json": {"VILA-3B": f"vila {number}"}})
    source = open_source(tmp_path)
    found = samples(source)
    with (tmp_path / "a.tar").open("rb") as file:
        theirs = list(
            group_by_keys({"__url__": "a.tar", **item} for item in tar_file_iterator(file))
        )
    expected = {
        f"a/{item['__key__']}": (
            item["png"],
            {"VILA-3B": json.loads(item["json"])["VILA-3B"], "original": item["txt"].decode()},
        )
        for item in theirs
    }
    assert expected == {
        id: (read_place(source.root, sample.place), texts(sample)) for id, sample in found.items()
    }


def test_members_in_any_order_belong_to_their_key(tmp_path: Path) -> None:
    members = numbered(4)
    tar(tmp_path / "a.tar", members[::2] + members[1::2])
    found = samples(open_source(tmp_path))
    assert [texts(sample)["original"] for sample in found.values()] == [
        f"text {number}" for number in range(4)
    ]


def test_units_are_parts_of_tars(tmp_path: Path) -> None:
    tar(tmp_path / "b/x.tar", numbered(5))
    tar(tmp_path / "a.tar", numbered(2))
    source = open_source(tmp_path, unit_size=2)
    assert source.units() == ["00000-000", "00001-000", "00001-001", "00001-002"]
    sizes = [len(list(source.read(unit))) for unit in source.units()]
    assert sizes == [2, 2, 2, 1]
    before = [source.made_from(unit) for unit in source.units()]
    assert len(set(before)) == 4
    os.utime(tmp_path / "b/x.tar", ns=(1, 1))
    after = open_source(tmp_path, unit_size=2)
    same = [after.made_from(u) == old for u, old in zip(after.units(), before, strict=True)]
    assert same == [True, False, False, False]


def test_a_key_has_one_picture(tmp_path: Path) -> None:
    members = [
        ("1.depth.png", png(9)),
        ("1.jpg", png(1)),
        ("1.mask.png", png(8)),
        ("2.jpg", png(2)),
        ("2.png", png(3)),
        ("2.jpg", png(4)),
        ("3.left.png", png(5)),
        ("3.right.png", png(6)),
        ("4.npy", b"x"),
        ("4.txt", "latents alone"),
    ]
    tar(tmp_path / "a.tar", members)
    source = open_source(tmp_path)
    found = samples(source)
    assert [read_place(source.root, s.place) for s in found.values()] == [png(1), png(2), png(5)]
    assert sorted(refusals(source)) == [
        ("a/2", "duplicate key"),
        ("a/2", "duplicate key"),
        ("a/3", "duplicate key"),
        ("a/4", "no picture"),
    ]


def test_hostile_members_are_refused_by_name_and_kind(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(9))
    path = tar(tmp_path / "in/a.tar", [("ok.png", png(1)), ("../secret.png", png(2))])
    with tarfile.open(path, "a") as file:
        for name, kind, link in [
            ("link.png", tarfile.SYMTYPE, "../secret.png"),
            ("hard.png", tarfile.LNKTYPE, "ok.png"),
            ("pipe.png", tarfile.FIFOTYPE, ""),
            ("folder", tarfile.DIRTYPE, ""),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            file.addfile(info)
        for name in ("/etc/abs.png", "a\\b.png", "C:x.png", "x/../y.png", "caf\udce9.png"):
            info = tarfile.TarInfo(name)
            info.size = 3
            file.addfile(info, io.BytesIO(b"abc"))
    source = open_source(tmp_path / "in")
    assert list(samples(source)) == ["a/ok"]
    refused = refusals(source)
    assert {reason for _, reason in refused} == {"unsafe name"}
    assert len(refused) == 9
    for entry in everything(source):
        to_line(entry).encode()


def test_a_tar_that_is_cut_short_gives_what_is_whole(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", numbered(3))
    whole = path.read_bytes()
    with tarfile.open(path) as file:
        starts = [(member.offset_data, member.size) for member in file]
    for length in (*range(0, len(whole) - 10240, 256), starts[2][0] + 10):
        path.write_bytes(whole[:length])
        entries = index_tar(path)
        pictures = [entry for entry in entries if not isinstance(entry, Refusal)]
        complete = sum(start + size <= length for start, size in starts[::2])
        assert len(pictures) == complete
        for entry in pictures:
            start, size = entry.span
            assert whole[start : start + size] == png(int(entry.key))
        is_between_members = length > 0 and complete * 2 == sum(s < length for s, _ in starts)
        assert (
            is_between_members
            or any(isinstance(entry, Refusal) for entry in entries)
            or (length in {s + 512 * -(-n // 512) for s, n in starts})
        )
    source = open_source(tmp_path)
    assert refusals(source)


def test_damage_in_the_middle_is_not_taken_for_the_end(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", numbered(4))
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as file:
        header = file.getmember("002.png").offset
    data[header + 150] ^= 0xFF  # in the checksum
    path.write_bytes(data)
    source = open_source(tmp_path)
    assert list(samples(source)) == ["a/000", "a/001"]
    assert refusals(source) == [("a.tar", "unreadable")]
    path.write_bytes(tar(tmp_path / "b", numbered(1)).read_bytes() * 2)
    assert refusals(open_source(path)) == [("a.tar", "unreadable")]


@pytest.mark.parametrize("data", [b"", b"\x1f\x8b compressed", b"no tar at all" * 100])
def test_what_is_no_tar_is_refused_beside_those_that_are(tmp_path: Path, data: bytes) -> None:
    tar(tmp_path / "a.tar", numbered(1))
    fill(tmp_path, {"b.tar": data})
    source = open_source(tmp_path)
    assert list(samples(source)) == ["a/000"]
    assert refusals(source) == [("b.tar", "unreadable")]


def test_sizes_that_lead_backwards_end_the_reading(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", numbered(2))
    data = bytearray(path.read_bytes())
    data[124:136] = b"\xff" * 4 + struct.pack(">q", -1024)  # base 256, negative
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    path.write_bytes(data)
    entries = everything(open_source(tmp_path))
    assert any(isinstance(entry, Refusal) and entry.reason == "unreadable" for entry in entries)


def test_captions_in_a_tar_that_cannot_be_read_leave_the_picture(tmp_path: Path) -> None:
    members = [("1.png", png()), ("1.txt", b"\xff"), ("1.json", "{"), ("2.png", png())]
    tar(tmp_path / "a.tar", [*members, ("2.txt", b"x" * (2 << 20))])
    source = open_source(tmp_path)
    assert [sample.captions for sample in samples(source).values()] == [(), ()]
    assert refusals(source) == [("a/1", "bad captions")] * 2 + [("a/2", "bad captions")]
    mine = open_source(tmp_path, captions=CaptionPolicy(user="mine"))
    assert refusals(mine) == []
    assert [texts(sample) for sample in samples(mine).values()] == [{"user": "mine"}] * 2


@given(st.data())
def test_no_damage_of_a_tar_stops_the_reading(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    path = tar(folder / "a.tar", numbered(2))
    raw = bytearray(path.read_bytes()[:5120])
    for at, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(raw) - 1), st.integers(0, 255)), max_size=6)
    ):
        raw[at] = value
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    source = open_source(folder)
    for entry in everything(source):
        to_line(entry).encode()
        if isinstance(entry, Sample):
            assert len(read_place(source.root, entry.place)) == entry.place.length


CAPTIONS: dict[str, tuple[Caption, ...]] = {
    "cats%2Ftom": (
        Caption(text="a cat", captioner="original", score=24.5),
        Caption(text="a tabby cat", captioner="VILA1-5-13B", score=31.25, weight=2.0),
    ),
    "b%2E1": (Caption(text="un caf\N{LATIN SMALL LETTER E WITH ACUTE}", captioner="InternVL2"),),
    "none": (),
}


def member(captions: tuple[Caption, ...]) -> dict[str, Any]:
    """A KEY.json as `sanakit data build` writes it."""
    first, others = captions[:1], captions[1:]
    return {
        "file_name": "x.png",
        "prompt": first[0].text if first else "",
        "width": 4,
        "height": 3,
        **{caption.captioner: caption.text for caption in others},
        "sanakit": {
            "id": "x",
            "captions": [
                {"text": c.text, "captioner": c.captioner, "score": c.score, "weight": c.weight}
                for c in captions
            ],
            "licence": "CC0-1.0",
            "source": "pics",
        },
    }


def built(folder: Path, *, scored: bool = True) -> Path:
    """Two shards and their index, as `sanakit data build` leaves them."""
    keys = list(CAPTIONS)
    shards = []
    for number, part in enumerate((keys[:2], keys[2:])):
        members: list[tuple[str, bytes | str]] = []
        for shade, key in enumerate(part):
            value = member(CAPTIONS[key])
            if not scored:
                for caption in value["sanakit"]["captions"]:
                    caption["score"] = None
            members += [(f"{key}.png", png(shade)), (f"{key}.json", json.dumps(value))]
        path = tar(folder / f"512x512-0000{number}.tar", members)
        size = path.stat().st_size
        shards.append(ShardFile(file=path.name, samples=len(part), bytes=size, sha256=""))
        fill(folder, {f"{path.stem}.keys.json": "{}", f"{path.stem}.done.json": "{}"})
    shards = tuple(shards)
    index = Index(resolution=512, store="fitted", made_from="", buckets={(512, 512): shards})
    (folder / "index.json").write_bytes(index.to_bytes())
    return folder


def read_as_nvlabs(folder: Path) -> dict[str, tuple[dict[str, str], dict[str, float]]]:
    """What NVlabs' data set class makes of a folder: its info and the scores it would weigh by.

    Written from the description of the format alone, without the code under test.
    """
    meta = json.loads((folder / "wids-meta.json").read_text("utf-8"))
    assert meta["__kind__"] == "SANA-WebDataset"
    assert meta["wids_version"] == 1
    assert isinstance(meta["name"], str)
    found = {}
    for shard in meta["shardlist"]:
        path = folder / shard["url"]
        assert path.stat().st_size == shard["filesize"]
        groups: dict[str, dict[str, bytes]] = {}
        with tarfile.open(path) as file:
            for info in file:
                key, _, kind = info.name.partition(".")
                handle = file.extractfile(info)
                assert handle is not None
                groups.setdefault(key, {})[kind] = handle.read()
        assert len(groups) == shard["nsamples"]
        for key, group in groups.items():
            assert {"png", "jpg"} & group.keys()
            info = json.loads(group["json"])
            weights: dict[str, float] = {}
            beside = Path(str(path).replace(".tar", "_clip_score.json"))
            value = json.loads(beside.read_text("utf-8")) if beside.exists() else {}
            weights |= {k: float(s) for k, s in value.get(key, {}).items() if k in info}
            found[key] = ({k: v for k, v in info.items() if k != "sanakit"}, weights)
    return found


def test_built_shards_come_back_with_the_same_captions_and_scores(tmp_path: Path) -> None:
    shards = built(tmp_path / "set/shards")
    write_wids(shards)
    assert [path.name for path in sorted(shards.glob("*_*.json"))] == [
        "512x512-00000_clip_score.json"
    ]
    source = open_source(shards)
    assert source.kind == "wids"
    found = samples(source)
    assert refusals(source) == []
    assert [sample.captions for sample in found.values()] == list(CAPTIONS.values())
    assert [sample.licence for sample in found.values()] == ["CC0-1.0"] * 3
    assert next(iter(found)) == "512x512-00000/cats%2Ftom"
    assert read_place(source.root, found["512x512-00000/b%2E1"].place) == png(1)


def test_nvlabs_reader_finds_prompts_and_scores_by_kind(tmp_path: Path) -> None:
    shards = built(tmp_path)
    write_wids(shards)
    found = read_as_nvlabs(shards)
    info, weights = found["cats%2Ftom"]
    assert info["prompt"] == "a cat"
    assert info["VILA1-5-13B"] == "a tabby cat"
    assert weights == {"prompt": 24.5, "VILA1-5-13B": 31.25}
    assert found["b%2E1"][0]["prompt"] == CAPTIONS["b%2E1"][0].text
    assert (found["none"][0]["prompt"], found["none"][1]) == ("", {})


def test_scores_of_an_earlier_build_do_not_stay(tmp_path: Path) -> None:
    write_wids(built(tmp_path))
    assert (tmp_path / "512x512-00000_clip_score.json").is_file()
    write_wids(built(tmp_path, scored=False))
    assert not (tmp_path / "512x512-00000_clip_score.json").exists()


def test_shards_that_are_not_those_of_the_index_are_not_listed(tmp_path: Path) -> None:
    shards = built(tmp_path)
    with (shards / "512x512-00001.tar").open("ab") as file:
        file.write(b"more")
    with pytest.raises(DataError, match="has not the"):
        write_wids(shards)
    assert not (shards / "wids-meta.json").exists()
    with pytest.raises(DataError, match=r"index\.json is missing"):
        write_wids(tmp_path / "nowhere")


def nvlabs(folder: Path, shards: list[dict[str, Any]]) -> Path:
    meta = {"name": "n", "__kind__": "SANA-WebDataset", "wids_version": 1, "shardlist": shards}
    return fill(folder, {"wids-meta.json": json.dumps(meta)})


def test_external_files_add_captions_and_scores_to_their_own_tar(tmp_path: Path) -> None:
    value = json.dumps({"prompt": "P", "Intern": "I", "file_name": "f", "version": "high_quality"})
    for stem in ("a-1", "a-10"):
        tar(tmp_path / f"{stem}.tar", [("k.jpg", png()), ("k.json", value)])
    notes = {
        "a-1_VILA.json": {"k": {"VILA": "V", "Intern": "I2"}},
        "a-1_clip.json": {"k": {"prompt": 20, "VILA": "30.5", "Intern": 28.5, "gone": 1}},
        "a-10_clip.json": {"k": {"prompt": 7.5}},
        "a-1.keys.json": {"k": {"ours": "no caption"}},
    }
    fill(tmp_path, {name: json.dumps(note) for name, note in notes.items()})
    nvlabs(tmp_path, [{"url": f"{s}.tar", "nsamples": 1, "filesize": 1} for s in ("a-1", "a-10")])
    first, second = samples(open_source(tmp_path)).values()
    assert first.captions == (
        Caption(text="P", captioner="original", score=20.0),
        Caption(text="I2", captioner="Intern", score=28.5),
        Caption(text="V", captioner="VILA", score=30.5),
    )
    assert second.captions == (
        Caption(text="P", captioner="original", score=7.5),
        Caption(text="I", captioner="Intern"),
    )


def test_external_files_count_for_made_from(tmp_path: Path) -> None:
    shards = built(tmp_path)
    write_wids(shards)
    source = open_source(shards)
    before = [source.made_from(unit) for unit in source.units()]
    fill(shards, {"512x512-00000_x.json": '{"none": {"prompt": 30}}'})
    after = open_source(shards)
    assert [
        after.made_from(unit) == old for unit, old in zip(after.units(), before, strict=True)
    ] == [
        False,
        True,
    ]


def test_a_list_that_is_wrong_about_its_tars_is_said(tmp_path: Path) -> None:
    members = [(f"{number}.png", png()) for number in range(3)]
    tar(tmp_path / "in/a.tar", members)
    tar(tmp_path / "b.tar", members)
    listed = [
        {"url": "elsewhere/in/a.tar", "nsamples": 10**15, "filesize": 1},
        {"url": "a.tar", "nsamples": 2, "filesize": 1},
        {"url": "../b.tar", "nsamples": 3, "filesize": 1},
        {"url": "s3://bucket/c.tar", "nsamples": 3, "filesize": 1},
    ]
    nvlabs(tmp_path / "in", listed[1:])
    fill(tmp_path / "in", {"a_x.json": "[]"})
    source = open_source(tmp_path / "in", unit_size=2)
    assert list(samples(source)) == ["a/0", "a/1", "a/2"]
    assert [name for name, _ in refusals(source)] == [
        "a.tar",
        "a_x.json",
        "../b.tar",
        "../b.tar",
        "s3://bucket/c.tar",
        "s3://bucket/c.tar",
    ]
    nvlabs(tmp_path / "in", listed[:1])
    assert list(samples(open_source(tmp_path / "in/wids-meta.json", unit_size=2))) == [
        "a/0",
        "a/1",
        "a/2",
    ]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"shardlist": []}', '{"shardlist": [{"url": 1}]}']
)
def test_a_damaged_list_is_one_error(tmp_path: Path, text: str) -> None:
    fill(tmp_path, {"wids-meta.json": text})
    with pytest.raises(DataError, match=r"wids-meta\.json"):
        everything(open_source(tmp_path))


def told(folder: Path, members: list[tuple[str, Any]]) -> dict[str, list[str]]:
    """The captions by id; those by captioners other than the original behind their name."""
    tar(folder / "a.tar", members)
    source = open_source(folder)
    return {
        id.removeprefix("a/"): [
            caption.text
            if caption.captioner == "original"
            else f"{caption.captioner}: {caption.text}"
            for caption in sample.captions
        ]
        for id, sample in samples(source).items()
    }


A, B = ("x_1.0.png", png(1)), ("x_1.1.png", png(2))
ONE, TWO = ("1.png", png(3)), ("2.png", png(2))
A_SAYS, B_SAYS = ("x_1.0.txt", "of 0"), ("x_1.1.txt", "of 1")


@pytest.mark.parametrize(
    ("members", "found"),
    [
        ([A, A_SAYS, B, B_SAYS], {"x_1.0": ["of 0"], "x_1.1": ["of 1"]}),
        ([A, B, A_SAYS, B_SAYS], {"x_1.0": ["of 0"], "x_1.1": ["of 1"]}),
        ([B_SAYS, A_SAYS, B, A], {"x_1.1": ["of 1"], "x_1.0": ["of 0"]}),
        ([A, A_SAYS, B], {"x_1.0": ["of 0"], "x_1.1": []}),
        ([A, B], {"x_1.0": [], "x_1.1": []}),
        ([A, B_SAYS], {"x_1.0": []}),
        (
            [("x_1.png", png(1)), ("x_1.txt", "plain"), B, B_SAYS],
            {"x_1": ["plain"], "x_1.1": ["of 1"]},
        ),
        ([("x_1.png", png(1)), ("x_1.1.txt", "lost"), A, A_SAYS], {"x_1": [], "x_1.0": ["of 0"]}),
        ([A, ("x_1.0.llava.txt", "seen")], {"x_1.0": ["llava: seen"]}),
        ([("v1.2/x.png", png(1)), ("v1.3/x.txt", "other")], {"v1.2/x": []}),
        ([("v1/x.0.png", png(1)), ("v2/x.0.txt", "other")], {"v1/x.0": []}),
        # Words behind the dot are fields, as WebDataset has them, unless a picture's text has them.
        ([("1.image.png", png(1)), ("1.caption.txt", "seen")], {"1": ["caption: seen"]}),
        (
            [("a.b.png", png(1)), ("a.b.txt", "of b"), ("a.c.txt", "of c")],
            {"a.b": ["of b"]},
        ),
        (
            [A, A_SAYS, ("1.png", png(2)), ("1.mask.png", png(3)), ("1.txt", "one")],
            {"x_1.0": ["of 0"], "1": ["one"]},
        ),
        # A name that the tar has twice.
        (
            [
                ("1.png", png(1)),
                ("1.txt", "first"),
                ("2.png", png(2)),
                ("1.png", png(3)),
                ("1.txt", "last"),
            ],
            {"1": ["first"], "2": []},
        ),
        (
            [("1.txt", "lost"), ("2.png", png(2)), ("1.png", png(3)), ("1.txt", "last")],
            {"2": [], "1": ["last"]},
        ),
        (
            [
                ("1.txt", "lost"),
                ("2.png", png(2)),
                ("1.png", png(3)),
                ("2.txt", "two"),
                ("1.txt", "last"),
            ],
            {"2": ["two"], "1": []},
        ),
        # An accent is one sign or two.
        ([("caf\u00e9.png", png(1)), ("cafe\u0301.txt", "coffee")], {"caf\u00e9": ["coffee"]}),
        ([("cafe\u0301.txt", "coffee"), ("caf\u00e9.png", png(1))], {"caf\u00e9": ["coffee"]}),
    ],
)
def test_no_picture_gets_the_caption_of_another(
    tmp_path: Path, members: list[tuple[str, Any]], found: dict[str, list[str]]
) -> None:
    assert told(tmp_path, members) == found


def test_a_text_whose_picture_is_not_there_is_a_line_of_the_report(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", [A, B_SAYS])
    assert refusals(open_source(tmp_path)) == [("a/x_1.1", "no picture")]
    tar(tmp_path / "a.tar", [("1.txt", "x"), B, ("1.png", png(1)), B_SAYS, ("1.txt", "y")])
    assert refusals(open_source(tmp_path)) == [("a/1", "bad captions")]


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
@pytest.mark.parametrize("size", ["17777777777", "00001000000"])
def test_a_name_that_asks_for_gigabytes_ends_the_tar_unread(
    tmp_path: Path, kind: bytes, size: str
) -> None:
    long = tarfile.TarInfo("././@LongLink")
    long.type = kind
    header = bytearray(long.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = f"{size}\0".encode()
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:]))
    path = tar(tmp_path / "a.tar", numbered(1))
    with path.open("r+b") as file:
        with tarfile.open(path) as members:
            file.seek(members.getmembers()[-1].offset_data + tarfile.BLOCKSIZE)
        file.write(header)
        file.truncate(1 << 32)  # takes no room: there is nothing in it
    tracemalloc.start()
    entries = index_tar(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 23
    assert [one.key for one in entries if not isinstance(one, Refusal)] == ["000"]
    assert [one.reason for one in entries if isinstance(one, Refusal)] == ["unreadable"]
