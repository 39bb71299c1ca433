"""The family "names": ranks as they are said to be; who draws the named thing is found."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from recipes.glyph.data.pictures import GlyphPictures, store_folder
from recipes.glyph.data.store import write_index, write_pack
from recipes.glyph.evaluate import names
from recipes.glyph.evaluate.names import (
    SOURCES,
    UNSEEN,
    WORDS,
    Gallery,
    evaluate_names,
    everyday_words,
    pictures_of_names,
    random_names,
    shared_names,
)
from recipes.glyph.evaluate.pictures import WHITE, GlyphSamples, Sample

from glyph_command import glyph
from sanakit.errors import ConfigError, DataError
from sanakit.evaluate import features
from sanakit.evaluate.figures import Evaluation
from sanakit.pipeline.pipeline import Pipeline
from sanakit.pipeline.pixels import Pixels
from tiny import tiny_components, write_tiny
from tiny_features import tiny_features
from tiny_pictures import tiny_record, write_pictures

SIDE = 32
DRAWN = [f"thing-{number}" for number in range(24)]


def write_sets(folder: Path) -> Path:
    """Four sets that draw two dozen things alike, and three an arrow and a dog's face besides."""
    named = [(source, name) for source in (*SOURCES, UNSEEN) for name in DRAWN]
    named += [(source, name) for source in SOURCES for name in ("up-arrow", "dog-face")]
    named.append(("noto", "only-here"))
    records = [
        replace(
            tiny_record(number),
            id=f"{source}/{name}",
            name="dog" if name == "dog-face" else name.replace("-", " "),
        )
        for number, (source, name) in enumerate(named)
    ]
    write_pictures(folder, records, size=SIDE)
    drawn = {
        name: np.random.default_rng(at).integers(0, 256, (SIDE // 8, SIDE // 8, 4), np.uint8)
        for at, name in enumerate(sorted({name for _, name in named}))
    }
    same = np.stack([drawn[name].repeat(8, axis=0).repeat(8, axis=1) for _, name in named])
    store = store_folder(folder, SIDE)
    write_index(store, SIDE, [("all", write_pack(store, "all", same))])
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> GlyphPictures:
    return GlyphPictures.open(write_sets(tmp_path_factory.mktemp("set") / "data"))


def gallery(looks: np.ndarray) -> Gallery:
    listed = tuple(f"a-{number}" for number in range(len(looks)))
    return Gallery(
        names=listed, concepts=listed, looks=looks, centre=np.zeros(looks.shape[1], np.float32)
    )


def test_the_gallery_holds_what_all_sets_name_and_nothing_that_details_tell_apart(
    pictures: GlyphPictures,
) -> None:
    assert shared_names(pictures) == tuple(sorted([*DRAWN, "dog-face"]))
    assert "only-here" in pictures_of_names(pictures, "noto")
    for name, kept in (("mango", True), ("man-running", False), ("keycap-1", False)):
        assert bool(names._LEFT_OUT.search(name)) != kept


def test_a_rank_counts_the_names_that_are_at_least_as_near() -> None:
    looks = np.eye(4, dtype=np.float32)
    mixed = np.array([[3, 2, 1, 0]], np.float32)
    for place in range(4):
        assert gallery(looks).ranks(mixed, [place]).tolist() == [place]
    assert gallery(looks).ranks(5 * mixed, [1]).tolist() == [1]  # length says nothing
    tied = np.array([[1, 1, 0, 0]], np.float32)
    assert gallery(looks).ranks(tied, [0]).tolist() == [1]
    assert gallery(looks).ranks(np.full((1, 4), np.nan, np.float32), [0]).tolist() == [3]


def test_names_are_drawn_from_their_seed_alone_and_words_are_found_by_their_concept() -> None:
    some = gallery(np.eye(9, dtype=np.float32))
    first = random_names(some, count=4, seed=0)
    assert random_names(some, count=9, seed=0)[:4] == first
    assert random_names(some, count=4, seed=1) != first
    assert first[0].prompt == f"{first[0].word}, flat emoji, white background"
    known = replace(some, concepts=("dog", *some.concepts[1:]))
    asked = {one.word: one for one in everyday_words(known)}
    assert len(asked) == len(WORDS) == 200
    assert asked["dog"].place == 0
    assert asked["dog"].prompt == "a dog"
    assert asked["cat"].place is None


def judged(
    drawn: Pixels, pictures: GlyphPictures, folder: Path, patch: pytest.MonkeyPatch
) -> Evaluation:
    patch.setattr(names, "_draw", lambda *_, **__: drawn)
    return evaluate_names(
        Pipeline(tiny_components()),
        pictures,
        tiny_features(width=32),
        model="m",
        data="d",
        out=folder / "out",
        cache=folder / "cache",
        count=len(DRAWN) + 1,
        strata=("names",),
    )


def test_who_draws_the_named_thing_is_found_and_who_draws_another_is_not(
    pictures: GlyphPictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = shared_names(pictures)
    order = np.random.default_rng(0).permutation(len(listed)).tolist()
    numbers = pictures_of_names(pictures, "noto")
    samples = [Sample(caption="", background=WHITE, number=numbers[listed[at]]) for at in order]
    right = GlyphSamples(pictures, samples)[:]
    found = [
        {one.name: one.value for one in judged(drawn, pictures, tmp_path, monkeypatch).figures}
        for drawn in (right, np.roll(right, 1, axis=0))
    ]
    assert found[0]["R@1, emoji names"] == 1
    assert found[0][f"R@1, real pictures of {UNSEEN}"] == 1
    assert found[0]["R@1, the same through the autoencoder"] < 0.5  # a tiny one, untrained
    assert found[1]["R@1, emoji names"] == 0
    assert found[1]["median rank, emoji names"] > 4


def test_it_is_typed_as_the_others_are(
    pictures: GlyphPictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(features, "load_features", lambda path=None: tiny_features(width=8))
    model, data = str(write_tiny(tmp_path / "tiny")), pictures.store.folder.parent
    common = ("eval", "names", model, "--data", data, "--steps", 1)
    monkeypatch.setattr(names, "WORDS", WORDS[:3])
    out, _ = glyph(*common, "-n", 3)
    assert "| R@5, emoji names |" in out
    assert "| R@1, everyday words |" in out
    found = json.loads((tmp_path / "runs/eval/names/evaluation.json").read_text(encoding="utf-8"))
    assert [one["prompt"] for one in found["details"]["everyday words"]] == [
        "a dog", "a cat", "a horse",
    ]  # fmt: skip
    assert [one["rank"] is None for one in found["details"]["everyday words"]] == [
        False,
        True,
        True,
    ]
    assert {path.name for path in (tmp_path / "runs/eval/names").glob("*.png")} == {
        "names.png", "words.png",
    }  # fmt: skip
    _, err = glyph(*common, "--stratum", "poems", code=2)
    assert "no stratum 'poems'" in err
    with pytest.raises(ConfigError, match="count=0"):
        evaluate_names(
            Pipeline(tiny_components()), pictures, tiny_features(width=8), model="", data="",
            out=tmp_path, cache=tmp_path, count=0,
        )  # fmt: skip


def test_a_set_without_these_names_is_refused(tmp_path: Path) -> None:
    other = write_pictures(tmp_path, [tiny_record(number) for number in range(4)])
    with pytest.raises(DataError, match="0 names that noto"):
        shared_names(GlyphPictures.open(other))
