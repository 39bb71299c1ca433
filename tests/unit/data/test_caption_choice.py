"""Caption choice: chances against their definitions, and realised frequencies against chances."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from sanakit.data.captions.choice import NVLABS, CaptionChoice
from sanakit.data.samples import Caption
from sanakit.errors import ConfigError, DataError

# Quantiles of chi-square that one honest draw in ten thousand exceeds, by degrees of freedom.
RARE = {1: 15.137, 2: 18.421, 3: 21.108}


def captions(*scores: float | None, weights: tuple[float, ...] | None = None) -> list[Caption]:
    weights = weights or (1.0,) * len(scores)
    return [
        Caption(text=f"text {number}", captioner=f"c{number}", score=score, weight=weight)
        for number, (score, weight) in enumerate(zip(scores, weights, strict=True))
    ]


def chi_square(seen: Counter[str], expected: dict[str, float]) -> tuple[float, int]:
    total = sum(seen.values())
    assert set(seen) <= {name for name, chance in expected.items() if chance > 0}
    terms = [
        (seen[name] - total * chance) ** 2 / (total * chance)
        for name, chance in expected.items()
        if chance > 0
    ]
    return sum(terms), len(terms) - 1


@pytest.mark.parametrize(
    ("choice", "given"),
    [
        (CaptionChoice(), captions(27.0, 26.0, 25.0)),
        (CaptionChoice(temperature=3.0), captions(27.0, 22.0, 30.0, 28.5)),
        (CaptionChoice(temperature=2.0, null_chance=0.2), captions(27.0, 26.0, 25.0)),
        (NVLABS, captions(26.0, 31.0, 24.9, 28.0)),
        (CaptionChoice(rule="uniform", null_chance=0.5), captions(26.0, 31.0)),
        (CaptionChoice(), captions(26.0, 26.0, 27.0, weights=(1.0, 3.0, 0.5))),
        (CaptionChoice(rule="power"), captions(None, None, weights=(1.0, 4.0))),
    ],
)
@pytest.mark.parametrize("over", ["samples", "epochs"])
def test_realised_frequencies_are_those_of_the_rule(
    choice: CaptionChoice, given: list[Caption], over: str
) -> None:
    draws = 8000
    seen: Counter[str] = Counter()
    for number in range(draws):
        id, epoch = (f"cats/{number}", 3) if over == "samples" else ("cats/7", number)
        chosen = choice.choose(given, seed=1, epoch=epoch, id=id)
        seen["null" if chosen is None else chosen.captioner] += 1
    kept = 1 - choice.null_chance
    expected = {"null": choice.null_chance} | {
        caption.captioner: kept * chance
        for caption, chance in zip(given, choice.chances(given), strict=True)
    }
    statistic, freedom = chi_square(seen, expected)
    assert statistic < RARE[freedom]


def test_softmax_and_power_are_what_their_formulas_say() -> None:
    given = captions(25.0, 27.5, 26.0, weights=(1.0, 2.0, 0.5))
    for choice, share in (
        (CaptionChoice(temperature=1.7), lambda c: c.weight * math.exp(c.score / 1.7)),
        (CaptionChoice(rule="power", temperature=0.1), lambda c: c.weight * c.score**10),
        (CaptionChoice(rule="uniform"), lambda c: c.weight),
    ):
        shares = [share(caption) for caption in given]
        slow = [value / sum(shares) for value in shares]
        assert choice.chances(given) == pytest.approx(slow, rel=1e-10)


def test_no_score_and_no_temperature_overflows() -> None:
    for rule in ("softmax", "power"):
        sharp = CaptionChoice(rule=rule, temperature=1e-9)  # type: ignore[arg-type]
        assert sharp.chances(captions(1e6, 2e6, 1e300)) == [0.0, 0.0, 1.0]
        flat = CaptionChoice(rule=rule, temperature=1e9)  # type: ignore[arg-type]
        assert flat.chances(captions(20.0, 30.0)) == pytest.approx([0.5, 0.5], abs=1e-6)


def test_captions_below_the_threshold_are_set_aside_and_the_best_is_taken_if_all_are() -> None:
    choice = CaptionChoice(threshold=25.0)
    assert choice.chances(captions(24.9, 25.0, 25.0)) == [0.0, 0.5, 0.5]
    assert choice.chances(captions(20.0, 24.9, 23.0)) == [0.0, 1.0, 0.0]
    assert CaptionChoice(rule="power").chances(captions(-3.0, -1.0)) == [0.0, 1.0]
    assert CaptionChoice(rule="power").chances(captions(-3.0, 1.0)) == [0.0, 1.0]


def test_a_caption_without_a_score_counts_as_the_mean_of_the_others() -> None:
    choice = CaptionChoice()
    assert choice.chances(captions(24.0, None, 28.0)) == choice.chances(captions(24.0, 26.0, 28.0))
    assert choice.chances(captions(24.0, math.nan)) == [0.5, 0.5]
    alone = choice.chances(captions(None, None, weights=(1.0, 3.0)))
    assert alone == pytest.approx([0.25, 0.75])


def test_a_weight_of_0_is_never_chosen_and_none_at_all_is_the_null_prompt() -> None:
    first = CaptionChoice(rule="first")
    assert first.chances(captions(None, None, None, weights=(0.0, 1.0, 9.0))) == [0.0, 1.0, 0.0]
    silent = captions(26.0, 27.0, weights=(0.0, 0.0))
    assert CaptionChoice().choose(silent, seed=0, epoch=0, id="a") is None
    assert CaptionChoice().choose([], seed=0, epoch=0, id="a") is None


def test_the_choice_depends_on_seed_epoch_and_id_and_on_nothing_else() -> None:
    given, choice = captions(26.0, 26.0), CaptionChoice(null_chance=0.3)

    def drawn(seed: int, epoch: int, prefix: str) -> list[Caption | None]:
        ids = [f"{prefix}/{number}" for number in range(40)]
        return [choice.choose(given, seed=seed, epoch=epoch, id=id) for id in ids]

    assert drawn(0, 0, "a") == drawn(0, 0, "a")
    others = [drawn(1, 0, "a"), drawn(0, 1, "a"), drawn(0, 0, "b")]
    assert all(other != drawn(0, 0, "a") for other in others)
    assert choice.choose(given, seed=0, epoch=0, id="\udcff") in (None, *given)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rule": "argmax"}, "no caption rule 'argmax'"),
        ({"temperature": 0.0}, "temperature=0.0 must be a number above 0"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"rule": "uniform", "temperature": 0.5}, "has no meaning for rule='uniform'"),
        ({"threshold": math.inf}, "threshold=inf"),
        ({"null_chance": 1.5}, "null_chance=1.5 must be in"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        CaptionChoice(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_a_weight_that_cannot_be_is_refused(weight: float) -> None:
    with pytest.raises(DataError, match=r"weight .* must be"):
        CaptionChoice().chances(captions(26.0, weights=(weight,)))
