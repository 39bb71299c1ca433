"""The pictures that the embedded autoencoder learns on: what is drawn, how often, on what."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from recipes.glyph.data.backgrounds import BACKGROUNDS
from recipes.glyph.data.pictures import GlyphPictures, compose, store_folder
from recipes.glyph.data.store import write_index, write_pack
from recipes.glyph.research.glyph_source import (
    GlyphSource,
    backgrounds_of,
    chances,
    drawn_by_weight,
)
from torch import Tensor
from torch.testing import assert_close

from sanakit.train.sample_schedule import SampleSchedule
from tiny_pictures import tiny_pictures, tiny_record, write_pictures


@pytest.fixture
def pictures(tmp_path: Path) -> GlyphPictures:
    return tiny_pictures(tmp_path / "data")


def first(source: GlyphSource, size: int, seed: int = 0) -> Tensor:
    return next(source.batches(SampleSchedule(seed=seed, batch_size=size)))


def test_a_background_is_white_or_a_named_one_or_any(rng: torch.Generator) -> None:
    drawn = backgrounds_of(torch.rand(4000, 5, generator=rng))
    assert drawn.shape == (4000, 3)
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    named = np.array(list(BACKGROUNDS.values()), dtype=np.float32)
    matches = (drawn[:, None] == named[None]).all(axis=2)
    shares = matches.mean(axis=0)
    # White is half, and one of the named ones as well.
    assert shares[0] == pytest.approx(0.5 + 0.25 / len(named), abs=0.03)
    assert shares[1:].min() > 0.5 * 0.25 / len(named)
    assert matches.any(axis=1).mean() == pytest.approx(0.75, abs=0.03)


def test_glyphs_are_those_of_the_training_split_on_backgrounds(pictures: GlyphPictures) -> None:
    found = set()
    for image in first(GlyphSource(pictures), 64):
        # Far from the square a picture is its background.
        for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
            behind = ((image[:, corner[0], corner[1]] + 1) / 2).numpy()[None]
            composed = [compose(pictures.rgba([i]), behind)[0] for i in range(10)]
            near = [i for i in range(10) if torch.allclose(composed[i], image, atol=1e-5)]
            if near:
                found.add(near[0])
                break
        else:
            raise AssertionError("a picture that is none of the set")
    assert found == set(range(6))


def test_a_glyph_comes_by_the_root_of_its_weight(tmp_path: Path) -> None:
    records = [tiny_record(i, weight=weight) for i, weight in enumerate([1.0, 9.0])]
    source = GlyphSource(GlyphPictures.open(write_pictures(tmp_path / "data", records, size=4)))
    rgba = np.zeros((2, 4, 4, 4), dtype=np.uint8)
    rgba[0, ..., 3] = 255  # the first is black, the second only background, which is never black
    store = store_folder(tmp_path / "data", 4)
    write_pack(store, "both", rgba)
    write_index(store, 4, [("both", 2)])
    source.pictures = GlyphPictures.open(tmp_path / "data")
    black = (first(source, 4000) == -1).flatten(1).all(dim=1)
    assert float(black.double().mean()) == pytest.approx(1 / (1 + 3), abs=0.03)


def test_held_glyphs_are_a_fixed_sample_of_unseen_concepts_on_white(
    pictures: GlyphPictures,
) -> None:
    source = GlyphSource(pictures)
    assert source.unseen
    assert source.held_rows(99).tolist() == [6, 7]
    assert len(source.held_rows(1)) == 1
    assert source.held_rows(1).tolist() == source.held_rows(1).tolist()
    held = torch.cat(list(source.held(99)))
    assert_close(held, compose(pictures.rgba([6, 7]), np.ones((2, 3))))


def test_choices_come_by_their_weights_and_never_without_one() -> None:
    table = chances(torch.tensor([0.0, 1.0, 0.0, 3.0, 0.0]))
    uniform = (torch.arange(4000) + 0.5) / 4000
    counts = torch.bincount(drawn_by_weight(table, uniform), minlength=5)
    assert counts.tolist() == [0, 1000, 0, 3000, 0]
    assert drawn_by_weight(table, torch.tensor([0.0, 1.0 - 2**-24])).tolist() == [1, 3]
