from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import zoo
from sanakit.data.samples import Caption, Place, Refusal, Sample
from sanakit.data.scan import ScanStage, ScanSummary, scan_source
from sanakit.data.training_set import QUARANTINE, TrainingSet
from sanakit.data.units import LocalEngine, Mark, Stage, fingerprint
from sanakit.errors import ConfigError, DataError
from sanakit.files import sha256_of
from sanakit.images.decode import DecodeLimits


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A source that gives the files it was told, in that order, ``size`` to a unit."""

    root: Path
    files: tuple[str, ...]
    size: int = 16
    kind: str = "folder"
    broken: str = ""

    def units(self) -> list[str]:
        return [f"{unit:05d}" for unit in range(-(-len(self.files) // self.size))]

    def made_from(self, unit: str) -> str:
        return fingerprint(self._of(unit))

    def read(self, unit: str) -> Iterator[Sample | Refusal]:
        for file in self._of(unit):
            if file == self.broken:
                raise DataError(f"{file} breaks the unit")
            captions = (Caption(text=f"a {file}", captioner="original"),) * ("no-" not in file)
            if "bad-captions" in file:
                yield Refusal(id=file, reason="bad captions", detail="not UTF-8")
            yield Sample(id=file, place=Place(kind="file", file=file), captions=captions)

    def _of(self, unit: str) -> list[str]:
        return list(self.files[int(unit) * self.size : (int(unit) + 1) * self.size])


def scan(
    source: Listed, folder: Path, *, workers: int = 1, near: int | None = None, **options: Any
) -> ScanSummary:
    options = {"report": lambda line: None, "given": source.root, **options}
    return scan_source(source, folder, LocalEngine(workers=workers), near=near, **options)


def noise(seed: int, size: tuple[int, int] = (40, 50)) -> Image.Image:
    """A picture that is like no other."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC)


def pictures(folder: Path, count: int, start: int = 0) -> Listed:
    folder.mkdir(exist_ok=True)
    names = tuple(f"{number:03d}.png" for number in range(start, start + count))
    for number, name in enumerate(names, start=start):
        (folder / name).write_bytes(zoo.saved(noise(number), "PNG"))
    return Listed(root=folder, files=names)


def quarantine(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / QUARANTINE).read_text("utf-8").splitlines()]


def everything(folder: Path) -> dict[str, str]:
    """All files of a set but `set.json`, which names the source's path."""
    return {
        path.relative_to(folder).as_posix(): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "set.json"
    }


def test_a_scan_of_the_zoo_takes_and_refuses_what_it_should(tmp_path: Path) -> None:
    animals = zoo.fill(tmp_path / "zoo")
    summary = scan(Listed(root=tmp_path / "zoo", files=tuple(sorted(animals))), tmp_path / "set")
    training_set = TrainingSet.open(tmp_path / "set")
    kept = {sample.id: sample for sample in training_set.kept()}
    assert {name: animal.reason for name, animal in animals.items() if animal.reason} == {
        line["id"]: line["reason"] for line in quarantine(tmp_path / "set")
    }
    assert kept.keys() == {name for name, animal in animals.items() if not animal.reason}
    for name, sample in kept.items():
        assert (sample.height, sample.width) == animals[name].size
        assert sample.sha256 == hashlib.sha256(animals[name].data).hexdigest()
        assert re.fullmatch("[0-9a-f]{16}", sample.phash)
    reasons = Counter(animal.reason for animal in animals.values() if animal.reason)
    assert summary.refused == reasons
    assert summary.seen == len(animals)
    assert summary.pictures == len(kept) == len(animals) - sum(reasons.values())
    assert summary.misnamed == sum(animal.misnamed for animal in animals.values())
    assert all(line["detail"] for line in quarantine(tmp_path / "set"))
    assert all(line["id"] in line["detail"] for line in quarantine(tmp_path / "set"))


def test_what_a_file_system_does_to_files_is_refused_and_stops_nothing(tmp_path: Path) -> None:
    names = zoo.odd_names(tmp_path / "odd")
    (tmp_path / "outside.png").write_bytes(zoo.saved(noise(1), "PNG"))
    summary = scan(Listed(root=tmp_path / "odd", files=tuple(sorted(names))), tmp_path / "set")
    refused = {line["id"]: line["reason"] for line in quarantine(tmp_path / "set")}
    assert refused == {name: reason for name, reason in names.items() if reason}
    assert summary.pictures == sum(not reason for reason in names.values())


def test_a_name_that_is_not_utf_8_comes_back_as_it_was(tmp_path: Path) -> None:
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    source = pictures(tmp_path / "in", 2)
    scan(Listed(root=source.root, files=(*source.files, name)), tmp_path / "set")
    [line] = quarantine(tmp_path / "set")
    assert line["id"] == name
    assert line["reason"] == "unreadable"  # sources refuse such a name before it is read


def test_engines_and_units_change_no_byte(tmp_path: Path) -> None:
    animals = zoo.fill(tmp_path / "zoo")
    source = Listed(root=tmp_path / "zoo", files=tuple(sorted(animals)), size=40)
    one = scan(source, tmp_path / "one", near=4)
    two = scan(source, tmp_path / "two", near=4, workers=2)
    assert one == two
    assert one.same_look > 20
    assert everything(tmp_path / "one") == everything(tmp_path / "two")
    small = Listed(root=source.root, files=source.files, size=7)
    scan(small, tmp_path / "small", near=4)
    one_set, small_set = (TrainingSet.open(tmp_path / name) for name in ("one", "small"))
    assert list(one_set.kept()) == list(small_set.kept())
    assert one_set.duplicates() == small_set.duplicates()


def test_the_first_of_the_pictures_that_look_the_same_stays(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", 40)
    image = noise(3)
    files = ["030-again.jpg", "020-larger.png", "same-as-3.png"]
    for name, data in zip(
        files,
        (
            zoo.saved(image, "JPEG", quality=95, subsampling=0),
            zoo.saved(image.resize((100, 80)), "PNG"),
            zoo.saved(image, "PNG"),
        ),
        strict=True,
    ):
        (tmp_path / "in" / name).write_bytes(data)
    source = Listed(root=source.root, files=tuple(sorted([*source.files, *files])))
    summary = scan(source, tmp_path / "set", near=4)
    assert (summary.pictures, summary.same_bytes, summary.same_look) == (40, 1, 2)
    training_set = TrainingSet.open(tmp_path / "set")
    assert training_set.duplicates() == dict.fromkeys(files, "003.png")
    assert [sample.id for sample in training_set.kept()] == [f"{n:03d}.png" for n in range(40)]
    assert len(list(training_set.all_samples())) == 43
    lines = {line["id"]: line for line in quarantine(tmp_path / "set")}
    assert set(lines) == set(files)
    assert all(line["reason"] == "duplicate picture" for line in lines.values())
    assert "003.png" in lines["020-larger.png"]["detail"]
    only_bytes = scan(source, tmp_path / "bytes", near=0)
    assert (only_bytes.pictures, only_bytes.same_bytes, only_bytes.same_look) == (42, 1, 0)
    keep = scan(source, tmp_path / "keep", near=None)
    assert (keep.pictures, keep.same_bytes, keep.same_look) == (43, 0, 0)
    assert TrainingSet.open(tmp_path / "keep").duplicates() == {}


def test_a_second_scan_reads_only_what_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = pictures(tmp_path / "in", 40)
    first = scan(source, tmp_path / "set", near=4)
    assert (first.units, first.fresh) == (3, 3)
    before = everything(tmp_path / "set")
    again = scan(source, tmp_path / "set", near=4)
    assert again.fresh == 0
    assert everything(tmp_path / "set") == before
    more = Listed(root=source.root, files=(*source.files, *pictures(source.root, 20, 40).files))
    grown = scan(more, tmp_path / "set", near=4)
    assert (grown.units, grown.fresh, grown.pictures) == (4, 2, 60)
    assert scan(more, tmp_path / "set", limits=DecodeLimits(min_side=2)).fresh == 4
    scan(source, tmp_path / "set", near=4)
    assert everything(tmp_path / "set") == before


def test_a_scan_that_was_stopped_goes_on_and_gives_the_same(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", 40)
    scan(source, tmp_path / "whole", near=4)

    @dataclass(frozen=True)
    class Stopping:
        def run(self, stage: Stage, units: Sequence[str]) -> Iterator[Mark]:
            for mark in LocalEngine().run(stage, units):
                yield mark
                if mark.unit == "00001":
                    raise KeyboardInterrupt

    quiet: dict[str, Any] = {"given": source.root, "report": lambda line: None}
    scan(source, tmp_path / "set")
    scan(source, tmp_path / "set", limits=DecodeLimits(min_side=2))
    with pytest.raises(KeyboardInterrupt):
        scan_source(source, tmp_path / "set", Stopping(), **quiet)
    with pytest.raises(DataError, match="the scan is not finished"):
        TrainingSet.open(tmp_path / "set").kept()
    summary = scan(source, tmp_path / "set", near=4)
    assert summary.fresh == 1
    assert everything(tmp_path / "set") == everything(tmp_path / "whole")


def damaged(folder: Path, good: int, bad: int) -> Listed:
    source = pictures(folder, good)
    names = tuple(f"bad-{number:02d}.png" for number in range(bad))
    for name in names:
        (folder / name).write_bytes(b"")
    return Listed(root=folder, files=(*names, *source.files), size=10)


def test_nothing_stops_a_scan_unless_a_share_is_set(tmp_path: Path) -> None:
    source = damaged(tmp_path / "in", good=2, bad=60)
    assert scan(source, tmp_path / "set").pictures == 2


def test_too_many_refusals_stop_it_with_the_reasons_and_what_was_done_stays(
    tmp_path: Path,
) -> None:
    source = damaged(tmp_path / "in", good=60, bad=30)
    said: list[str] = []
    with pytest.raises(DataError) as caught:
        scan(source, tmp_path / "set", max_refused=0.4, report=said.append)
    assert "20 of 20 pictures are refused (20 empty file)" in caught.value.message
    assert "40% of --max-refused" in caught.value.message
    assert str(tmp_path / "set" / QUARANTINE) in (caught.value.hint or "")
    assert len(quarantine(tmp_path / "set")) == 20
    assert len(said) == 1  # of the first unit: the second unit was finished, and no third was begun
    with pytest.raises(DataError, match="the scan is not finished"):
        TrainingSet.open(tmp_path / "set").kept()
    with pytest.raises(DataError, match="20 of 20 pictures"):  # and not forgotten the next time
        scan(source, tmp_path / "set", max_refused=0.4)
    summary = scan(source, tmp_path / "set", max_refused=1.0)
    assert (summary.pictures, summary.fresh) == (60, 7)
    with pytest.raises(DataError, match=r"30 of 90 pictures .* 33%"):
        scan(source, tmp_path / "set", max_refused=0.33)
    assert scan(source, tmp_path / "set", max_refused=0.34).pictures == 60


def test_a_few_pictures_are_judged_when_all_were_seen(tmp_path: Path) -> None:
    source = damaged(tmp_path / "in", good=3, bad=3)
    with pytest.raises(DataError, match="3 of 6 pictures"):
        scan(source, tmp_path / "set", max_refused=0.4)
    assert scan(source, tmp_path / "set", max_refused=0.5).pictures == 3


def test_a_wish_for_large_pictures_is_no_sign_of_a_bad_source(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", 40)
    (source.root / "000.png").write_bytes(zoo.saved(noise(0, (300, 200)), "PNG"))
    summary = scan(source, tmp_path / "set", limits=DecodeLimits(min_side=100), max_refused=0.0)
    assert summary.refused == {"too small": 39}
    assert summary.sides == (200, 200, 200)
    assert summary.smaller_than == {256: 1, 512: 1, 1024: 1}


def test_captions_that_are_bad_keep_their_picture(tmp_path: Path) -> None:
    pictures(tmp_path / "in", 2)
    names = ("000.png", "bad-captions.png", "no-captions.png")
    (tmp_path / "in" / "000.png").rename(tmp_path / "in" / "bad-captions.png")
    (tmp_path / "in" / "001.png").rename(tmp_path / "in" / "no-captions.png")
    (tmp_path / "in" / "000.png").write_bytes(zoo.saved(noise(9), "PNG"))
    summary = scan(Listed(root=tmp_path / "in", files=names), tmp_path / "set", max_refused=0.0)
    assert (summary.pictures, summary.captions, summary.without_captions) == (3, 2, 1)
    assert summary.refused == {}
    assert summary.remarks == {"bad captions": 1}
    assert [line["id"] for line in quarantine(tmp_path / "set")] == ["bad-captions.png"]


def test_a_unit_that_breaks_in_the_middle_keeps_what_was_read(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", 20)
    source = Listed(root=source.root, files=source.files, size=10, broken="004.png")
    summary = scan(source, tmp_path / "set")
    assert summary.pictures == 14
    [line] = quarantine(tmp_path / "set")
    assert line["id"] == "unit 00000"
    assert "004.png breaks the unit" in line["detail"]


def test_a_scan_with_nothing_to_show_says_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no pictures"):
        scan(Listed(root=tmp_path, files=()), tmp_path / "set")
    source = damaged(tmp_path / "in", good=0, bad=5)
    with pytest.raises(DataError, match="no picture passed the scan: 5 empty file"):
        scan(source, tmp_path / "set")
    assert len(quarantine(tmp_path / "set")) == 5


def test_a_set_is_of_one_source(tmp_path: Path) -> None:
    scan(pictures(tmp_path / "in", 2), tmp_path / "set")
    before = everything(tmp_path / "set")
    with pytest.raises(DataError, match="holds the pictures of"):
        scan(pictures(tmp_path / "other", 3), tmp_path / "set")
    assert everything(tmp_path / "set") == before


@pytest.mark.parametrize(
    "options", [{"max_refused": 1.5}, {"max_refused": -0.1}, {"near": 9}], ids=str
)
def test_values_out_of_range_are_refused_before_anything_is_written(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError):
        scan(pictures(tmp_path / "in", 2), tmp_path / "set", **options)
    assert not (tmp_path / "set").exists()


def test_a_full_disk_is_not_taken_for_a_bad_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sanakit.data.scan.np.save", full)
    with pytest.raises(DataError, match="cannot be written"):
        scan(pictures(tmp_path / "in", 2), tmp_path / "set")
    assert not (tmp_path / "set" / QUARANTINE).exists()


def test_a_lost_file_of_the_scan_is_made_again(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", 20)
    scan(source, tmp_path / "set", near=4)
    before = everything(tmp_path / "set")
    (tmp_path / "set" / "scan" / "00000.colours.npy").unlink()
    assert scan(source, tmp_path / "set", near=4).fresh == 1
    assert everything(tmp_path / "set") == before


def test_the_stage_is_a_stage(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", 1)
    stage = ScanStage(set_folder=tmp_path, source=source)
    other = ScanStage(set_folder=tmp_path, source=source, limits=DecodeLimits(first_frame=True))
    assert stage.made_from("00000") != other.made_from("00000")
