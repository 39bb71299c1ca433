from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from sanakit.data.samples import Caption
from sanakit.data.shards import Index, ShardFile
from sanakit.data.sources.opening import open_source
from sanakit.data.sources.places import read_place
from sanakit.data.sources.wids import write_wids
from sanakit.errors import DataError
from tiny_sources import everything, fill, png, refusals, samples, tar

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
