"""The real pictures that figures are of: the right splits, the same each time, on their ground."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from recipes.glyph.data.mixture import Sample
from recipes.glyph.data.pictures import GlyphPictures
from recipes.glyph.evaluate.pictures import (
    GlyphSamples,
    held_pictures,
    held_samples,
    known_samples,
    open_glyph_set,
)
from recipes.glyph.research.glyph_source import GlyphSource

from sanakit.errors import ConfigError, DataError
from sanakit.pipeline.pixels import to_pixels
from tiny_pictures import tiny_record, write_pictures


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    splits = ["train"] * 40 + ["held_concept"] * 8 + ["held_style"] * 24
    records = [
        tiny_record(index, split=split, weight=0.0 if index == 5 else 1.0 + 9 * (index == 7))
        for index, split in enumerate(splits)
    ]
    return write_pictures(tmp_path_factory.mktemp("set"), records, size=32)


@pytest.fixture(scope="module")
def glyphs(folder: Path) -> GlyphPictures:
    return GlyphPictures.open(folder)


def numbers(samples: list[Sample]) -> list[int]:
    found = [one.number for one in samples]
    assert len(set(found)) == len(found)
    return [number for number in found if number is not None]


def test_held_prompts_are_of_both_held_splits_in_their_proportion(glyphs: GlyphPictures) -> None:
    splits = [glyphs.records[i].split for i in numbers(held_samples(glyphs, 16))]
    assert sorted(set(splits)) == ["held_concept", "held_style"]
    assert splits.count("held_concept") == 4
    assert splits[:12] != sorted(splits[:12])  # mixed: the first ones are a fair sample
    everything = held_samples(glyphs, 1000)
    assert sorted(numbers(everything)) == list(range(40, 72))


def test_known_pictures_are_of_training_by_weight_and_first_ones_stay(
    glyphs: GlyphPictures,
) -> None:
    everything = known_samples(glyphs, 1000)
    assert sorted(numbers(everything)) == [i for i in range(40) if i != 5]
    assert known_samples(glyphs, 12) == everything[:12]
    assert 7 in numbers(everything)[:20]
    with pytest.raises(ConfigError, match="count=0"):
        known_samples(glyphs, 0)


def test_a_sample_is_its_picture_on_its_background(glyphs: GlyphPictures) -> None:
    plain = GlyphSamples(glyphs, [Sample(caption="", background="white", number=3)])[:]
    dark = GlyphSamples(glyphs, [Sample(caption="", background="black", number=3)])[:]
    see_through = glyphs.rgba([3])[0, ..., 3] == 0
    assert (plain[0][see_through] == 255).all()
    assert (dark[0][see_through] == 18).all()
    solid = glyphs.rgba([3])[0, ..., 3] == 255
    assert (plain[0][solid] == dark[0][solid]).all()


def test_a_cache_tells_pictures_backgrounds_and_their_order_apart(glyphs: GlyphPictures) -> None:
    samples = [Sample(caption="", background="white", number=n) for n in (3, 4)]
    others = [
        samples[::-1],
        samples[:1],
        [Sample(caption="", background="black", number=n) for n in (3, 4)],
    ]
    asked = GlyphSamples(glyphs, samples).asked
    assert all(GlyphSamples(glyphs, other).asked != asked for other in others)
    assert GlyphSamples(glyphs, list(samples)).asked == asked


def test_an_autoencoder_is_measured_on_what_training_measures(
    folder: Path, glyphs: GlyphPictures
) -> None:
    found = held_pictures(folder, size=32, count=6)
    held = to_pixels(next(GlyphSource(glyphs).held(6)))
    assert np.array_equal(found[:], held)
    assert len(held_pictures(folder, size=None, count=None)) == 8
    with pytest.raises(DataError):
        held_pictures(folder, size=64, count=None)


def test_captions_are_asked_of_a_glyph_set_alone(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no glyph set"):
        open_glyph_set(tmp_path, None)
