"""The mixture that training draws: shares, captions, backgrounds."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from recipes.glyph.data.backgrounds import BACKGROUNDS, captioned
from recipes.glyph.data.build import weighted
from recipes.glyph.data.mixture import COMPOSITE_SHARE, Mixture, is_everyday
from recipes.glyph.data.pictures import GlyphPictures, compose
from recipes.glyph.data.scenes import caption, facts
from recipes.glyph.data.split import PROTECTED

from sanakit.errors import ConfigError, DataError
from tiny_pictures import tiny_record
from tiny_scenes import tiny_scenes


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> GlyphPictures:
    data = tiny_scenes(tmp_path_factory.mktemp("data") / "set")
    shares = {"emoji": 0.5, "icons": 0.3}
    records = [
        replace(one, row="icons" if one.painted else "emoji", weight=one.weight * (1 + i % 3))
        for i, one in enumerate(data.records)
    ]
    return replace(data, records=weighted(records, shares))


def chi_square(found: Counter[object], shares: dict[object, float]) -> float:
    """The statistic over its degrees of freedom: about 1 if the shares are right."""
    total, whole = sum(found.values()), sum(shares.values())
    assert set(found) <= set(shares)
    terms = [
        (found[key] - total * share / whole) ** 2 / (total * share / whole)
        for key, share in shares.items()
        if share
    ]
    return sum(terms) / (len(terms) - 1)


def test_rows_composites_and_pictures_come_by_their_shares(pictures: GlyphPictures) -> None:
    samples = Mixture(pictures, everyday=1).draw(20_000, np.random.default_rng(0))
    rows: Counter[object] = Counter(
        "composite" if one.number is None else pictures.records[one.number].row for one in samples
    )
    rest = 1 - COMPOSITE_SHARE
    expected: dict[object, float] = {
        "composite": COMPOSITE_SHARE, "emoji": rest * 5 / 8, "icons": rest * 3 / 8,
    }  # fmt: skip
    assert chi_square(rows, expected) < 4.6  # one in a hundred, two degrees of freedom
    numbers: Counter[object] = Counter(one.number for one in samples if one.number is not None)
    weights: dict[object, float] = {
        i: one.weight for i, one in enumerate(pictures.records) if one.split == "train"
    }
    assert chi_square(numbers, weights) < 2.2


def test_everyday_things_come_more_often_except_as_silhouettes(pictures: GlyphPictures) -> None:
    usual = sorted(PROTECTED)[0]
    flat, outline = replace(pictures.records[0], name=usual), pictures.records[0]
    assert is_everyday(flat)
    assert not is_everyday(replace(flat, style="silhouette"))
    assert not is_everyday(replace(outline, name="no such thing"))
    records = [replace(one, name="no such thing") for one in pictures.records]
    first = next(i for i, one in enumerate(records) if one.split == "train")
    records[first] = replace(records[first], name=usual)
    changed = replace(pictures, records=records)
    drawn = Mixture(changed, composites=0, everyday=6).draw(4000, np.random.default_rng(0))
    weights = {i: one.weight for i, one in enumerate(records) if one.split == "train"}
    wanted = 6 * weights[first] / (sum(weights.values()) + 5 * weights[first])
    found = sum(one.number == first for one in drawn) / len(drawn)
    assert found == pytest.approx(wanted, abs=0.03)


def test_a_share_of_none_or_all_is_none_or_all(pictures: GlyphPictures) -> None:
    rng = np.random.default_rng(0)
    assert all(one.scene is None for one in Mixture(pictures, composites=0).draw(50, rng))
    assert all(one.number is None for one in Mixture(pictures, composites=1).draw(50, rng))


def test_a_sample_says_one_of_its_captions_and_any_background_but_white(
    pictures: GlyphPictures,
) -> None:
    seen, whites = set(), Counter[bool]()
    for one in Mixture(pictures).draw(4000, np.random.default_rng(1)):
        if one.scene is None:
            assert one.number is not None
            own = set(pictures.records[one.number].captions)
            assert one.background not in pictures.records[one.number].hidden_on
        else:
            own = {
                caption(one.scene, fact, with_style=style, with_background=False)
                for fact in facts(one.scene)
                for style in (False, True)
            }
            assert one.background == one.scene.background
        said = {captioned(text, one.background) for text in own}
        assert one.caption in (said | own if one.background == "white" else said)
        if one.scene is None:
            whites[one.background == "white"] += 1
        seen.add(one.background)
    assert seen == set(BACKGROUNDS)
    assert whites[True] / whites.total() == pytest.approx(0.5, abs=0.03)


def test_the_same_generator_gives_the_same_samples(pictures: GlyphPictures) -> None:
    first, again, other = (
        Mixture(pictures).draw(40, np.random.default_rng(seed)) for seed in (5, 5, 6)
    )
    assert first == again
    assert first != other


def test_images_are_the_pictures_on_their_backgrounds(pictures: GlyphPictures) -> None:
    mixture = Mixture(pictures)
    samples = mixture.draw(12, np.random.default_rng(2))
    images = mixture.images(samples)
    assert images.shape == (12, 3, 64, 64)
    for one, image in zip(samples, images, strict=True):
        corner = torch.tensor(BACKGROUNDS[one.background]) * 2 - 1
        torch.testing.assert_close(image[:, 0, 0], corner)
        if one.number is not None:
            alone = compose(pictures.rgba([one.number]), np.array([BACKGROUNDS[one.background]]))
            torch.testing.assert_close(image, alone[0])


def test_held_scenes_are_new_and_training_has_none_of_them(pictures: GlyphPictures) -> None:
    mixture = Mixture(pictures)
    held = mixture.held_scenes(20, np.random.default_rng(0))
    assert all(one.scene is not None and one.scene.is_held for one in held)
    trained = mixture.draw(500, np.random.default_rng(0))
    assert not any(one.scene is not None and one.scene.is_held for one in trained)


def test_a_held_split_has_its_own_pictures_and_no_composites(pictures: GlyphPictures) -> None:
    drawn = Mixture(pictures, split="held_concept", composites=0).draw(5, np.random.default_rng(0))
    assert {pictures.records[one.number].name for one in drawn if one.number} == {"gorilla"}
    with pytest.raises(ConfigError, match=rf"composites={COMPOSITE_SHARE} of held_concept"):
        Mixture(pictures, split="held_concept")
    records = [one for one in pictures.records if one.split != "held_style"]
    with pytest.raises(DataError, match="held_style holds no picture"):
        Mixture(replace(pictures, records=records), split="held_style", composites=0)
    with pytest.raises(ConfigError, match=r"white=1.5 is no share"):
        Mixture(pictures, white=1.5)


def test_weights_give_each_row_its_share_whichever_rows_there_are() -> None:
    records = [
        replace(tiny_record(i, split=split, weight=weight), row=row)
        for i, (row, split, weight) in enumerate(
            [
                ("a", "train", 1.0),
                ("a", "train", 3.0),
                ("b", "train", 5.0),
                ("b", "held_style", 5.0),
            ]
        )
    ]
    found = [one.weight for one in weighted(records, {"a": 0.2, "b": 0.3, "absent": 0.5})]
    assert found[:3] == pytest.approx([0.3, 0.9, 1.8], rel=1e-5)
    assert sum(found[:3]) == pytest.approx(3)
    assert found[3] == pytest.approx(1.8, rel=1e-5)
