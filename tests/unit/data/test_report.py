from __future__ import annotations

import base64
import io
import itertools
import json
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sanakit.data.build import BuildSettings, build_shards
from sanakit.data.report.facts import gather
from sanakit.data.report.page import SIDE, binned, write_report
from sanakit.data.samples import Caption, Refusal
from sanakit.data.training_set import TrainingSet
from sanakit.data.units import LocalEngine
from tiny_set import picture, scanned_set

HOSTILE = (
    '</figcaption><script>alert("1")</script><img src=http://x.example/y onerror=alert(2)> & é'
)
CAPTIONS = {
    "one": (
        Caption(text=HOSTILE, captioner='<b onclick="x">', score=30.0),
        Caption(text="a b", captioner="qwen", score=20.0),
    ),
    "two": (Caption(text="a b c d", captioner="qwen", score=22.5),),
}
REFUSED = (
    Refusal(id="<i>", reason="truncated", detail="<script>"),
    Refusal(id="y", reason="truncated"),
    Refusal(id="two", reason="bad captions", detail="not UTF-8"),
    Refusal(id="z", reason="duplicate picture", detail="shows what one shows"),
)
VOID = {"meta", "img", "br"}


@pytest.fixture
def training_set(tmp_path: Path) -> TrainingSet:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, (name, size) in enumerate(
        {"one": (80, 40), "two": (50, 50), "three": (300, 400), "four": (500, 400)}.items()
    ):
        (folder / f"{name}.png").write_bytes(picture(*size, seed=number))
    return scanned_set(tmp_path / "a <set>", folder, CAPTIONS, REFUSED)


def build(training_set: TrainingSet, **settings: Any) -> None:
    build_shards(
        training_set,
        BuildSettings(**{"resolution": 64, **settings}),
        engine=LocalEngine(),
        report=lambda line: None,
    )


class Page(HTMLParser):
    """Tags, attributes and text; refuses what does not nest."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("built", [False, True])
def test_the_page_shows_hostile_text_as_it_is_and_fetches_nothing(
    training_set: TrainingSet, built: bool
) -> None:
    if built:
        build(training_set)
    page = Page(write_report(training_set))
    assert HOSTILE in page.text
    assert '<b onclick="x">' in page.text
    assert "a <set>" in page.text
    assert set(page.tags) <= {
        *("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "dl", "dt", "dd"),
        *(
            "div",
            "figure",
            "figcaption",
            "img",
            "br",
            "i",
            "bdi",
            "span",
            "table",
            "tr",
            "th",
            "td",
        ),
        *("svg", "defs", "g", "path", "text"),
    } | {"title"}
    for _, name, value in page.attributes:
        assert not name.startswith("on")
        assert name not in ("href", "srcset", "data", "action")
        if name == "src":
            assert value.startswith("data:image/jpeg;base64,")


def test_facts_are_counts_of_what_is_in_the_set(training_set: TrainingSet) -> None:
    build(training_set)
    facts = gather(training_set)
    assert (facts.samples, facts.captions, facts.without_captions) == (4, 3, 2)
    assert facts.sides == Counter({40: 1, 50: 1, 300: 1, 400: 1})
    assert facts.licences == Counter({"CC0-1.0": 4})
    assert facts.captioners["qwen"].words == Counter({2: 1, 4: 1})
    assert facts.captioners["qwen"].scores == Counter({20.0: 1, 22.5: 1})
    assert [(one.reason, one.count) for one in facts.left_out] == [
        ("truncated", 2),
        ("duplicate picture", 1),
    ]
    assert [one.id for one in facts.left_out[0].examples] == ["<i>", "y"]
    assert [(one.reason, one.count) for one in facts.remarks] == [("bad captions", 1)]
    assert (facts.refused, facts.duplicates) == (3, 1)
    assert facts.index.samples == 4


def test_what_the_build_left_out_is_no_picture_of_the_set(training_set: TrainingSet) -> None:
    build(training_set, min_side=60)
    facts = gather(training_set)
    assert (facts.samples, facts.enlarged, facts.refused) == (2, 0, 5)
    assert {sample.id for sample in facts.chosen} == {"three", "four"}


def test_a_duplicate_is_no_picture_of_the_set(training_set: TrainingSet) -> None:
    path = training_set.folder / "scan" / "duplicates.jsonl"
    path.write_text(json.dumps({"id": "four", "of": "three", "distance": 0}) + "\n")
    build(training_set)
    assert gather(training_set).samples == 3
    assert gather(training_set).index.samples == 3


def test_the_pictures_shown_are_a_fixed_choice_that_grows(training_set: TrainingSet) -> None:
    chosen = [[one.id for one in gather(training_set, choose=n).chosen] for n in range(6)]
    assert [len(ids) for ids in chosen] == [0, 1, 2, 3, 4, 4]
    for fewer, more in itertools.pairwise(chosen):
        assert more[: len(fewer)] == fewer


@pytest.mark.parametrize("built", [False, True])
def test_the_same_set_gives_the_same_report(training_set: TrainingSet, built: bool) -> None:
    if built:
        build(training_set)
    reports = []
    for _ in range(2):
        folder = write_report(training_set).parent
        reports.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert reports[0] == reports[1]
    assert set(reports[0]) == {"index.html", "contact-sheet.png"}


def test_the_sheet_holds_the_pictures_as_the_shards_have_them(
    training_set: TrainingSet,
) -> None:
    build(training_set, buckets="square", resolution=256)
    folder = write_report(training_set).parent
    sheet = np.asarray(Image.open(folder / "contact-sheet.png"))
    assert sheet.shape[1] > 4 * SIDE
    # A square bucket fills its place: nothing of the faint ground is left in it.
    for column in range(4):
        left = 12 + column * (SIDE + 12)
        corner = sheet[14:20, left + 2 : left + 8].reshape(-1, 3)
        assert not np.all(corner == (236, 236, 240))


def test_pictures_that_are_gone_are_said_to_be(training_set: TrainingSet) -> None:
    (Path(training_set.source) / "one.png").unlink()
    page = Page(write_report(training_set))
    assert "cannot be read" in page.text
    assert page.tags["img"] == 3


def test_a_set_without_captions_and_refusals_has_a_page_too(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "x.png").write_bytes(picture(64, 64))
    training_set = scanned_set(tmp_path / "set", tmp_path / "pictures")
    page = Page(write_report(training_set))
    assert "training sees the empty prompt only" in page.text
    assert "Nothing." in page.text


NUMBERS = st.dictionaries(
    st.integers(0, 100_000), st.integers(1, 9), max_size=40
) | st.dictionaries(st.floats(-50, 100, width=16), st.integers(1, 9), max_size=40)


@given(values=NUMBERS)
def test_a_histogram_counts_everything_once_and_in_order(values: dict[Any, int]) -> None:
    bins = binned(values)
    assert sum(count for _, count in bins) == sum(values.values())
    assert len(bins) <= 24
    edges = [float(name) for name, _ in bins]
    assert edges == sorted(edges)
    if len(edges) > 1:
        step = edges[1] - edges[0]
        for edge, (_, count) in zip(edges, bins, strict=True):
            inside = sum(
                number
                for value, number in values.items()
                if edge - step * 1e-3 <= value < edge + step * (1 + 1e-3)
            )
            assert count <= inside


def test_tenths_are_counted_as_tenths_though_binary_has_none() -> None:
    bins = binned({number / 10: 1 for number in range(12)}, most=14)
    assert [count for _, count in bins] == [1] * 12


def test_a_picture_of_a_page_is_a_picture(training_set: TrainingSet) -> None:
    build(training_set, resolution=512)

    page = Page(write_report(training_set))
    codes = [value.split(",")[1] for _, name, value in page.attributes if name == "src"]
    sizes = [Image.open(io.BytesIO(base64.b64decode(code))).size for code in codes]
    assert len(sizes) == 4
    assert all(max(size) <= SIDE for size in sizes)
