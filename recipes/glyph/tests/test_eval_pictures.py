"""The real pictures that figures are of: the right splits, the same each time, on their ground."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from recipes.glyph.data.mixture import Sample
from recipes.glyph.data.pictures import GlyphPictures

from sanakit.errors import ConfigError, DataError
from sanakit.evaluate.pictures import (
    FilePictures,
    GlyphSamples,
    held_samples,
    known_samples,
    open_glyph_set,
    pictures_to_restore,
)
from sanakit.pipeline.images import to_pixels
from sanakit.train.recipes.picture_sources import GlyphSource
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
    found = pictures_to_restore(folder, size=32, count=6)
    held = to_pixels(next(GlyphSource(glyphs).held(6)))
    assert np.array_equal(found[:], held)
    assert len(pictures_to_restore(folder, size=None, count=None)) == 8
    with pytest.raises(DataError):
        pictures_to_restore(folder, size=64, count=None)


def test_any_folder_of_pictures_gives_squares_and_the_same_sample(tmp_path: Path) -> None:
    for number in range(5):
        picture = np.full((40, 60, 3), 50 * number, dtype=np.uint8)
        picture[:, :10] = picture[:, 50:] = 255  # cut off: the middle square is plain
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    found = pictures_to_restore(tmp_path, size=32, count=3)
    assert isinstance(found, FilePictures)
    pixels = found[:]
    assert pixels.shape == (3, 32, 32, 3)
    assert [int(each[16, 16, 0]) for each in pixels] == [50 * int(name) for name in found.labels]
    assert found.labels == pictures_to_restore(tmp_path, size=32, count=3).labels
    assert pictures_to_restore(tmp_path, size=None, count=None)[0:1].shape == (1, 256, 256, 3)
    (tmp_path / f"{found.labels[0]}.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=f"{found.labels[0]}: "):
        found[:1]


def test_captions_are_asked_of_a_glyph_set_alone(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no glyph set"):
        open_glyph_set(tmp_path, None)
