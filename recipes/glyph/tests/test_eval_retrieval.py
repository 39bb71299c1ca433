"""R-precision: who may be a distractor, what a rank is, and figures checked by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from recipes.glyph.data.mixture import Sample
from recipes.glyph.evaluate.judge_samples import Shown
from recipes.glyph.evaluate.pages import Group, Tile, bars, sheet
from recipes.glyph.evaluate.retrieval import (
    Trial,
    by_style,
    hits,
    ranks_of,
    ratio_figure,
    shuffled,
    split_figures,
    trials_of,
)

from sanakit.errors import ConfigError, DataError
from sanakit.evaluate.figures import Figure

# Four pictures and three captions each, the own one first.
AGREEMENT = np.array(
    [
        [0.9, 0.1, 0.8],  # found at once
        [0.5, 0.7, 0.1],  # one is better
        [0.2, 0.3, 0.9],  # both are better
        [0.4, 0.4, 0.1],  # a tie is no find
    ]
)


def shown(concept: str, *texts: str, background: str = "white", said: bool = False) -> Shown:
    texts = texts or (f"a {concept}",)
    end = f", on a {background} background" if said else ""
    sample = Sample(caption=texts[0] + end, background=background, number=0)
    return Shown(sample=sample, texts=texts, ids=(concept,), concept=concept, style="flat")


def crowd(count: int) -> list[Shown]:
    return [shown(f"thing {number}") for number in range(count)]


def test_ranks_count_the_captions_that_agree_as_well_or_better() -> None:
    assert ranks_of(AGREEMENT).tolist() == [0, 1, 2, 1]


def test_what_is_no_number_finds_nothing() -> None:
    broken = np.array([[np.nan, 0.1, 0.2], [0.5, np.nan, 0.1]])
    assert ranks_of(broken).tolist() == [2, 1]


def test_figures_of_a_small_matrix_are_those_counted_by_hand() -> None:
    model, ceiling, floor = ranks_of(AGREEMENT), np.array([0, 0, 0, 4]), np.array([3, 5, 4, 9])
    found = split_figures("held", model=model, ceiling=ceiling, floor=floor)
    values = {figure.name: figure.value for figure in found}
    assert values["R-precision@1, held"] == 1 / 4
    assert values["R-precision@1, held: real pictures"] == 3 / 4
    assert values["R-precision@1, held: shuffled captions"] == 0
    assert values["R-precision@1, held: part of the real"] == pytest.approx(1 / 3)
    assert values["R-precision@5, held"] == 1
    assert values["R-precision@5, held: shuffled captions"] == 2 / 4
    assert all(figure.low <= figure.value <= figure.high for figure in found)


def test_the_ratio_is_resampled_by_picture_and_not_by_side() -> None:
    # Model and ceiling find the same pictures: whichever are drawn, the ratio is one.
    same = np.tile([0, 9, 0, 9, 0, 0], 20)
    figure = ratio_figure("same", same, same, 1)
    assert figure is not None
    assert (figure.value, figure.low, figure.high) == (1, 1, 1)


def test_a_judge_that_finds_no_real_picture_gives_no_ratio() -> None:
    assert ratio_figure("blind", np.array([0, 0]), np.array([1, 2]), 1) is None
    found = split_figures("held", model=np.array([0]), ceiling=np.array([5]), floor=np.array([9]))
    assert len(found) == 2 * 3


def test_a_caption_that_pictures_share_is_no_distractor_of_either() -> None:
    own = shown("automobile", "an automobile", "a car")
    pool = [own, shown("car", "A car", "a sedan"), shown("taxi", "a taxi", "Car"), *crowd(9)]
    (trial,) = trials_of([own], pool, seed=0, ways=10)
    assert set(trial.concepts) == {"automobile", *(one.concept for one in crowd(9))}
    with pytest.raises(DataError, match="has 9 other concepts"):
        trials_of([own], pool, seed=0, ways=11)


def test_distractors_are_of_other_concepts_each_of_its_own() -> None:
    pool = [shown(f"thing {number % 6}", f"picture {number}") for number in range(60)]
    for one, trial in zip(pool, trials_of(pool, pool, seed=1, ways=6), strict=True):
        assert trial.concepts[0] == one.concept
        assert len(set(trial.concepts)) == len(set(trial.captions)) == 6


def test_all_captions_of_a_trial_say_the_same_of_the_background() -> None:
    own = shown("cup", background="mint", said=True)
    pool = [shown(f"thing {n}", background="black", said=True) for n in range(4)]
    (told,) = trials_of([own], pool, seed=0, ways=5)
    assert all(text.endswith(", on a mint background") for text in told.captions)
    (silent,) = trials_of([shown("cup")], pool, seed=0, ways=5)
    assert not any("background" in text for text in silent.captions)


def test_the_same_seed_gives_the_same_trials_and_another_one_others() -> None:
    pool = crowd(40)
    first = trials_of(pool[:5], pool, seed=3, ways=10)
    assert first == trials_of(pool[:5], pool, seed=3, ways=10)
    assert first != trials_of(pool[:5], pool, seed=4, ways=10)
    # A picture's distractors do not depend on how many others are asked about.
    assert first[:2] == trials_of(pool[:2], pool, seed=3, ways=10)


def test_one_way_is_no_choice() -> None:
    with pytest.raises(ConfigError, match="ways=1"):
        trials_of(crowd(2), crowd(2), seed=0, ways=1)


def test_shuffling_leaves_no_picture_with_its_own_concept() -> None:
    trials = [Trial(captions=(str(n),), concepts=(f"thing {n % 3}",)) for n in range(30)]
    for seed in range(5):
        moved = shuffled(trials, seed)
        assert all(a.concepts != b.concepts for a, b in zip(trials, moved, strict=True))
    with pytest.raises(DataError, match="one concept"):
        shuffled(trials[:1] * 4, 0)


def test_blind_agreement_finds_one_in_so_many() -> None:
    rng = np.random.default_rng(0)
    found = hits(ranks_of(rng.random((20_000, 100))), 1).mean()
    # Three standard errors of a share of 1/100.
    assert found == pytest.approx(0.01, abs=3 * (0.01 * 0.99 / 20_000) ** 0.5)


def test_styles_are_counted_apart() -> None:
    flat, line = shown("a"), replace(shown("b"), style="line")
    found = by_style(
        [line, flat, flat, flat], model=np.array([0, 0, 3, 1]), real=np.array([2, 0, 0, 0])
    )
    assert list(found) == ["flat", "line"]
    assert found["flat"] == {"count": 3, "model": 0.3333, "real": 1.0}
    assert found["line"] == {"count": 1, "model": 1.0, "real": 0.0}


def test_a_bar_a_figure_and_a_row_for_every_four_pictures() -> None:
    figure = Figure(name="share", value=0.5, low=0.4, high=0.9, count=3)
    groups = [Group(name="@1", figures=[figure, figure, None])]
    (axes,) = bars(groups, ["a", "b", "c"], title="t").axes
    assert [bar.get_height() for bar in axes.patches] == [0.5, 0.5]
    tile = Tile(pixels=np.full((8, 8, 3), 200, np.uint8), caption="a b\nc", seen="d")
    short, tall = (sheet([("hits", [tile] * n)], title="t").size for n in (4, 9))
    assert tall[0] == short[0]
    assert tall[1] > 2 * short[1]
