from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sanakit.data.build import BuildSettings, BuildShards, BuildSummary, bucket_of, build_shards
from sanakit.data.resize_and_crop import bucket_table, fitted, nearest_bucket
from sanakit.data.samples import Caption, Refusal
from sanakit.data.shards import read_index, read_keys, read_span
from sanakit.data.training_set import TrainingSet
from sanakit.data.units import LocalEngine
from sanakit.errors import ConfigError, DataError
from tiny_set import picture, scanned_set

SIZES = [(40, 40), (64, 64), (50, 90), (90, 50), (128, 40), (70, 70), (64, 70), (48, 96)]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "cats").mkdir(parents=True)
    for number in range(24):
        height, width = SIZES[number % len(SIZES)]
        format_ = ("PNG", "JPEG", "WEBP", "BMP")[number % 4]
        name = f"{'cats/' if number % 2 else ''}picture {number:02}.{format_.lower()}"
        (folder / name).write_bytes(picture(height, width, seed=number, format_=format_))
    return folder


CAPTIONS = {
    "picture 00": (
        Caption(text="a thing", captioner="original"),
        Caption(text="a <b>second</b> text", captioner="qwen", score=25.5, weight=0.5),
        Caption(text="a third", captioner="width"),
    )
}


def settings(**changes: Any) -> BuildSettings:
    return BuildSettings(**{"resolution": 64, "shard_samples": 5, **changes})


def build(training_set: TrainingSet, workers: int = 1, **changes: Any) -> BuildSummary:
    options = {key: changes.pop(key) for key in ("max_bad",) if key in changes}
    return build_shards(
        training_set,
        settings(**changes),
        engine=LocalEngine(workers=workers),
        report=lambda line: None,
        **options,
    )


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def stored(shards: Path) -> dict[str, tuple[tarfile.TarInfo, bytes, dict[str, Any]]]:
    """All samples as Python's own tar reader finds them: id to (member, picture, record)."""
    found = {}
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path, "r:") as tar:
            members = tar.getmembers()
            for image, meta in zip(members[::2], members[1::2], strict=True):
                assert image.name.rsplit(".", 1)[0] == meta.name.removesuffix(".json")
                record = json.loads(tar.extractfile(meta).read())
                assert record["file_name"] == image.name
                found[record["sanakit"]["id"]] = (image, tar.extractfile(image).read(), record)
    return found


def test_every_picture_is_in_one_shard_of_its_bucket(tmp_path: Path, pictures: Path) -> None:
    summary = build(scanned_set(tmp_path / "set", pictures))
    shards = tmp_path / "set" / "shards"
    found = stored(shards)
    assert len(found) == summary.samples == 24
    table = bucket_table(64)
    index = read_index(shards)
    for (height, width), files in index.buckets.items():
        for shard in files:
            assert shard.samples <= 5
            assert hashlib.sha256((shards / shard.file).read_bytes()).hexdigest() == shard.sha256
            for identity in read_keys(shards, shard.unit).keys:
                size = found[identity][2]["sanakit"]["original_size"]
                assert nearest_bucket(*size, table) == (height, width)


def test_spans_of_the_key_list_are_the_members_of_the_tar(tmp_path: Path, pictures: Path) -> None:
    build(scanned_set(tmp_path / "set", pictures))
    shards = tmp_path / "set" / "shards"
    found = stored(shards)
    for shard in read_index(shards).shards:
        keys = read_keys(shards, shard.unit)
        for identity, image, meta in zip(keys.keys, keys.images, keys.meta, strict=True):
            assert read_span(shards / shard.file, image) == found[identity][1]
            assert json.loads(read_span(shards / shard.file, meta)) == found[identity][2]


def test_a_stored_picture_is_the_source_fitted_to_its_bucket(
    tmp_path: Path, pictures: Path
) -> None:
    build(scanned_set(tmp_path / "set", pictures))
    for path in pictures.rglob("*.*"):
        identity = str(path.relative_to(pictures)).rsplit(".", 1)[0]
        member, data, record = stored(tmp_path / "set" / "shards")[identity]
        original = np.asarray(Image.open(path).convert("RGB"))
        bucket = (record["height"], record["width"])
        pixels = np.asarray(Image.open(io.BytesIO(data)))
        expected = fitted(original, bucket)
        assert pixels.shape == (*bucket, 3)
        if path.suffix == ".jpeg":
            assert member.name.endswith(".jpg")
            assert np.abs(pixels.astype(int) - expected).mean() < 2
        else:
            assert member.name.endswith(".png")
            np.testing.assert_array_equal(pixels, expected)


def test_stored_originals_are_the_bytes_of_the_source(tmp_path: Path, pictures: Path) -> None:
    build(scanned_set(tmp_path / "set", pictures), store="original")
    found = stored(tmp_path / "set" / "shards")
    for path in pictures.rglob("*.*"):
        member, data, record = found[str(path.relative_to(pictures)).rsplit(".", 1)[0]]
        with Image.open(path) as image:
            assert (record["width"], record["height"]) == image.size
        if path.suffix == ".bmp":  # readers of shards know no BMP
            assert member.name.endswith(".png")
            np.testing.assert_array_equal(Image.open(io.BytesIO(data)), Image.open(path))
        else:
            assert data == path.read_bytes()


def test_a_record_carries_all_captions_and_the_names_of_nvlabs(
    tmp_path: Path, pictures: Path
) -> None:
    build(scanned_set(tmp_path / "set", pictures, CAPTIONS))
    _, _, record = stored(tmp_path / "set" / "shards")["picture 00"]
    data = (pictures / "picture 00.png").read_bytes()
    assert record == {
        "file_name": "picture%2000.png",
        "prompt": "a thing",
        "width": 64,
        "height": 64,
        "qwen": "a <b>second</b> text",
        "width caption": "a third",
        "sanakit": {
            "id": "picture 00",
            "captions": [
                {"text": "a thing", "captioner": "original", "score": None, "weight": 1.0},
                {
                    "text": "a <b>second</b> text",
                    "captioner": "qwen",
                    "score": 25.5,
                    "weight": 0.5,
                },
                {"text": "a third", "captioner": "width", "score": None, "weight": 1.0},
            ],
            "licence": "CC0-1.0",
            "source": "folder",
            "sha256": hashlib.sha256(data).hexdigest(),
            "original_size": [40, 40],
            "crop": [0.0, 0.0, 1.6],
        },
    }


def test_the_list_of_nvlabs_names_all_shards(tmp_path: Path, pictures: Path) -> None:
    build(scanned_set(tmp_path / "set", pictures))
    shards = tmp_path / "set" / "shards"
    listed = json.loads((shards / "wids-meta.json").read_text())["shardlist"]
    assert [(one["url"], one["nsamples"], one["filesize"]) for one in listed] == [
        (shard.file, shard.samples, shard.bytes) for shard in read_index(shards).shards
    ]


def test_the_shards_do_not_depend_on_processes_or_on_how_the_scan_was_cut(
    tmp_path: Path, pictures: Path
) -> None:
    build(scanned_set(tmp_path / "one" / "set", pictures))
    build(scanned_set(tmp_path / "two" / "set", pictures, units=3), workers=2)
    assert tree(tmp_path / "one" / "set" / "shards") == tree(tmp_path / "two" / "set" / "shards")


def test_building_again_touches_nothing(tmp_path: Path, pictures: Path) -> None:
    training_set = scanned_set(tmp_path / "set", pictures)
    assert build(training_set).fresh > 0
    shards = tmp_path / "set" / "shards"
    before = {path: path.stat().st_mtime_ns for path in shards.rglob("*")}
    assert build(training_set).fresh == 0
    assert {path: path.stat().st_mtime_ns for path in shards.rglob("*")} == before


@pytest.mark.parametrize(
    "changes",
    [
        {"resolution": 96},
        {"shard_samples": 3},
        {"seed": 1},
        {"store": "original"},
        {"min_side": 50},
    ],
)
def test_other_settings_leave_nothing_of_the_shards_before(
    tmp_path: Path, pictures: Path, changes: dict[str, Any]
) -> None:
    build(scanned_set(tmp_path / "set", pictures))
    first = tree(tmp_path / "set" / "shards")
    build(scanned_set(tmp_path / "set", pictures), **changes)
    build(scanned_set(tmp_path / "fresh" / "set", pictures), **changes)
    now = tree(tmp_path / "set" / "shards")
    assert now == tree(tmp_path / "fresh" / "set" / "shards")
    assert {name for name in now if name.endswith(".tar") and now[name] != first.get(name)}


def test_a_new_caption_makes_only_its_own_shard_again(tmp_path: Path, pictures: Path) -> None:
    build(scanned_set(tmp_path / "set", pictures))
    summary = build(scanned_set(tmp_path / "set", pictures, CAPTIONS))
    assert summary.fresh == 1
    assert summary.without_captions == 23


def test_there_is_no_index_while_shards_are_being_replaced(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training_set = scanned_set(tmp_path / "set", pictures)
    build(training_set)
    real = BuildShards.process

    def watching(self: BuildShards, unit: str, staging: Path) -> dict[str, Any]:
        assert read_index(self.folder) is None
        return real(self, unit, staging)

    monkeypatch.setattr(BuildShards, "process", watching)
    build(training_set, store="original")
    assert read_index(tmp_path / "set" / "shards") is not None


def test_small_pictures_are_counted_or_left_out_with_a_line(tmp_path: Path, pictures: Path) -> None:
    refused = (Refusal(id="bad", reason="truncated", detail="half of it is missing"),)
    training_set = scanned_set(tmp_path / "set", pictures, refused=refused)
    assert build(training_set).enlarged == sum(
        max(bucket_of(f"{h}x{w}-0")[0] / size[0], w / size[1]) > 1
        for size in SIZES * 3
        for h, w in [nearest_bucket(*size, bucket_table(64))]
    )
    summary = build(training_set, min_side=64)
    assert summary.left_out == {"too small": 15}
    assert summary.samples == 9
    lines = (tmp_path / "set" / "shards" / "left-out.jsonl").read_text().splitlines()
    manifest = [json.loads(line) for line in lines]
    assert manifest[0] == {"id": "bad", "reason": "truncated", "detail": "half of it is missing"}
    assert {one["reason"] for one in manifest[1:]} == {"too small"}
    details = {one["id"]: one["detail"] for one in manifest}
    assert details["picture 02"] == "50 x 90, and a side has to be 64"


def harm(path: Path, kind: str) -> None:
    if kind == "gone":
        path.unlink()
    elif kind == "another":
        path.write_bytes(picture(30, 30, seed=99))
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("gone", "unreadable"), ("another", "changed since the scan"), ("torn", "changed since")],
)
def test_a_picture_that_was_lost_after_the_scan_is_left_out_and_taken_when_it_is_back(
    tmp_path: Path, pictures: Path, kind: str, reason: str
) -> None:
    training_set = scanned_set(tmp_path / "set", pictures)
    build(scanned_set(tmp_path / "whole" / "set", pictures))
    path = pictures / "picture 00.png"
    data = path.read_bytes()
    harm(path, kind)
    summary = build(training_set)
    assert summary.samples == 23
    assert [reason in one for one in summary.left_out] == [True]
    assert "picture 00" not in stored(tmp_path / "set" / "shards")
    assert "picture 00" in (tmp_path / "set" / "shards" / "left-out.jsonl").read_text()
    path.write_bytes(data)
    assert build(training_set).samples == 24
    assert tree(tmp_path / "set" / "shards") == tree(tmp_path / "whole" / "set" / "shards")


def test_too_many_lost_pictures_end_the_build_without_an_index(
    tmp_path: Path, pictures: Path
) -> None:
    training_set = scanned_set(tmp_path / "set", pictures)
    for path in pictures.glob("cats/*"):
        path.unlink()
    with pytest.raises(DataError, match="12 of 24 pictures cannot be read any more, such as cats/"):
        build(training_set)
    assert read_index(tmp_path / "set" / "shards") is None
    assert build(training_set, max_bad=0.5).samples == 12


def test_a_shard_that_lost_all_its_pictures_is_not_listed(tmp_path: Path, pictures: Path) -> None:
    training_set = scanned_set(tmp_path / "set", pictures)
    (pictures / "picture 00.png").unlink()
    assert build(training_set, buckets="square", shard_samples=1).shards == 23
    assert len(list((tmp_path / "set" / "shards").glob("*.tar"))) == 24


def test_pictures_that_are_gone_as_a_whole_are_named(tmp_path: Path, pictures: Path) -> None:
    training_set = scanned_set(tmp_path / "set", pictures)
    pictures.rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="pictures of the set are gone"):
        build(training_set)


def test_nothing_to_build_is_an_error_that_says_where_to_look(
    tmp_path: Path, pictures: Path
) -> None:
    with pytest.raises(DataError, match="no picture is left") as raised:
        build(scanned_set(tmp_path / "set", pictures), min_side=500)
    assert "sanakit data stats" in raised.value.hint


@pytest.mark.parametrize(
    "changes", [{"resolution": 50}, {"store": "both"}, {"shard_samples": 0}, {"min_side": -1}]
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=str(next(iter(changes.values())))):
        settings(**changes)


HOSTILE = ["../../etc/passwd", "a/b.c", "a%2Fb", "ünï", "x" * 400, "\udcff", ".", "~", "CON", ""]


def test_names_inside_a_tar_are_tame_and_tell_ids_apart() -> None:
    from sanakit.data.shards import key_of

    names = [key_of(identity) for identity in HOSTILE]
    assert len(set(names)) == len(names)
    for name in names:
        assert len(name) <= 180
        assert set("/\\. \0") & set(name) == set()
        name.encode("ascii")
    assert key_of("y" + "ü" * 300) != key_of("y" + "ü" * 299)


class Full:
    """`open` on a disk with room for some bytes more."""

    def __init__(self, room: int) -> None:
        self.room = room

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = Path.open

        def opening(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            file = real(path, mode, *arguments, **options)
            if mode != "wb":
                return file
            writing = file.write

            class Writer:
                def write(_, data: bytes) -> int:
                    if len(data) > self.room:
                        writing(data[: self.room])
                        self.room = 0
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    self.room -= len(data)
                    return writing(data)

                def __enter__(writer) -> Any:
                    return writer

                def __exit__(_, *raised: object) -> None:
                    file.close()

                def __getattr__(_, name: str) -> Any:
                    return getattr(file, name)

            return Writer()

        monkeypatch.setattr(Path, "open", opening)


@pytest.mark.parametrize("room", [100, 20_000, 60_000])
def test_a_disk_that_fills_up_in_mid_shard_leaves_whole_shards_and_the_next_run_ends_them(
    tmp_path: Path, pictures: Path, room: int
) -> None:
    training_set = scanned_set(tmp_path / "set", pictures)
    build(scanned_set(tmp_path / "whole" / "set", pictures))
    shards = tmp_path / "set" / "shards"
    with pytest.MonkeyPatch.context() as patch:
        Full(room).install(patch)
        with pytest.raises(DataError, match="No space left on device"):
            build(training_set)
    assert read_index(shards) is None
    assert not list(shards.glob(".*"))
    whole = tree(tmp_path / "whole" / "set" / "shards")
    for path in shards.glob("*.tar"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == whole[path.name]
    build(training_set)
    assert tree(shards) == whole
