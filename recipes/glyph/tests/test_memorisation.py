"""Memorisation: distances as they are said to be, and a model that copies is found out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from recipes.glyph.data.pictures import GlyphPictures
from recipes.glyph.evaluate import generation, memorisation
from recipes.glyph.evaluate.memorisation import Thumbnails, evaluate_memorisation, nearest_of
from recipes.glyph.evaluate.pictures import GlyphSamples, held_samples, known_samples

from sanakit.errors import ConfigError
from sanakit.evaluate.figures import Evaluation
from sanakit.pipeline.pipeline import Pipeline
from sanakit.pipeline.pixels import Pixels
from tiny import tiny_components
from tiny_features import tiny_features
from tiny_pictures import tiny_record, write_pictures

COUNT = 60


@pytest.fixture(scope="module")
def glyphs(tmp_path_factory: pytest.TempPathFactory) -> GlyphPictures:
    splits = ["train"] * 70 + ["held_concept"] * 40 + ["held_style"] * 40
    records = [tiny_record(index, split=split) for index, split in enumerate(splits)]
    return GlyphPictures.open(write_pictures(tmp_path_factory.mktemp("set"), records, size=32))


def judged(
    drawn: Pixels, glyphs: GlyphPictures, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Evaluation:
    """What is found of a model that draws exactly these."""
    monkeypatch.setattr(generation, "generate_pictures", lambda *_, **__: drawn)
    return evaluate_memorisation(
        Pipeline(tiny_components()),
        glyphs,
        tiny_features(width=16),
        model="m",
        data="d",
        out=folder / "out",
        cache=folder / "cache",
        count=COUNT,
    )


def test_a_model_that_copies_is_found_out_and_one_that_draws_anew_is_not(
    glyphs: GlyphPictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    white = memorisation._white(glyphs, known_samples(glyphs, COUNT))
    copies = GlyphSamples(glyphs, white)[:]
    fresh = GlyphSamples(glyphs, held_samples(glyphs, COUNT))[:]
    noise = np.random.default_rng(0).integers(0, 256, copies.shape, dtype=np.uint8)
    found = [
        {figure.name: figure.value for figure in evaluation.figures}
        for evaluation in (
            judged(pixels, glyphs, tmp_path, monkeypatch) for pixels in (copies, fresh, noise)
        )
    ]
    for name in ("features", "pixels"):
        share = f"share of drawn nearer than 1 % of held-out real, by {name}"
        assert found[0][share] == 1
        assert found[1][share] < 0.1
        assert found[2][share] == 0
    by_pixels = "median distance to training, {}, by pixels"
    assert found[0][by_pixels.format("drawn")] == pytest.approx(0, abs=1e-3)
    assert found[0][by_pixels.format("held-out real")] > 1


def test_only_prompts_on_white_are_judged_and_too_few_are_refused(
    glyphs: GlyphPictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures on other grounds are noise here; none of them may be seen."""
    held = held_samples(glyphs, COUNT)
    white = np.array([one.background == "white" for one in held])
    assert 20 <= white.sum() < COUNT
    drawn = GlyphSamples(glyphs, held)[:]
    spoilt = drawn.copy()
    spoilt[~white] = np.random.default_rng(1).integers(0, 256, spoilt[~white].shape)
    wanted = judged(drawn, glyphs, tmp_path, monkeypatch)
    assert judged(spoilt, glyphs, tmp_path, monkeypatch).details == wanted.details
    monkeypatch.setattr(memorisation, "LEAST", COUNT)
    with pytest.raises(ConfigError, match="on white are too few"):
        judged(drawn, glyphs, tmp_path, monkeypatch)


def test_thumbnails_lie_as_far_apart_as_their_levels_differ() -> None:
    thumbnails = Thumbnails()
    dark, light = np.full((1, 64, 64, 3), 40, np.uint8), np.full((1, 96, 64, 3), 47, np.uint8)
    apart = torch.linalg.vector_norm(thumbnails(dark) - thumbnails(light))
    assert float(apart) == pytest.approx(7, rel=1e-5)
    # A pixel of a thumbnail is the mean of its area, whatever lies inside.
    board = np.indices((64, 64)).sum(axis=0) % 2 * 100
    checked = np.repeat(board[None, :, :, None], 3, axis=3).astype(np.uint8)
    plain = np.full((1, 64, 64, 3), 50, np.uint8)
    assert torch.allclose(thumbnails(checked), thumbnails(plain), atol=1e-5)


def test_the_nearest_of_many_is_found_in_whichever_part_it_lies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(9, 4)).astype(np.float32)
    known = rng.normal(size=(23, 4)).astype(np.float32)
    apart = np.linalg.norm(rows[:, None].astype(float) - known[None], axis=2)
    monkeypatch.setattr(memorisation, "_PART", 5)
    found = nearest_of(rows, known)
    assert np.array_equal(found.index, apart.argmin(axis=1))
    assert np.allclose(found.distance, apart.min(axis=1))
    assert len(set((found.index // 5).tolist())) > 1
