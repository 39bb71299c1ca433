"""The best of several drawings: which come back, and what is refused of pipes and scorers."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from sanakit import Pipeline, SanaPipeline, best_of, clip_scorer
from sanakit.data.captions.scorers import BATCH
from sanakit.data.captions.scoring import DualEncoder
from sanakit.errors import ConfigError, MissingModelError
from sanakit.evaluate.best_of import best
from tiny import tiny_components
from tiny_vision_models import write_clip

SIZE: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def pipe() -> SanaPipeline:
    made = SanaPipeline(Pipeline(tiny_components()))
    made.set_progress_bar_config(disable=True)
    return made


def redness(images: Sequence[Image.Image], prompt: str) -> list[float]:
    return [image.resize((1, 1)).getpixel((0, 0))[0] for image in images]  # type: ignore[index]


def test_the_best_come_back_best_first_and_their_seed_draws_them(pipe: SanaPipeline) -> None:
    kept = best_of(pipe, "a red apple", scorer=redness, of=5, keep=2, seed=7, **SIZE)
    every = {
        seed: pipe("a red apple", generator=torch.Generator().manual_seed(seed), **SIZE).images[0]
        for seed in range(7, 12)
    }
    scores = {seed: redness([image], "")[0] for seed, image in every.items()}
    assert len(set(scores.values())) > 2
    expected = sorted(scores, key=lambda seed: (-scores[seed], seed))[:2]
    assert [one.seed for one in kept] == expected
    assert [one.score for one in kept] == [scores[seed] for seed in expected]
    assert all(one.image.tobytes() == every[one.seed].tobytes() for one in kept)


def test_a_scorer_sees_all_drawings_at_once_with_their_prompt(pipe: SanaPipeline) -> None:
    seen: list[tuple[int, str]] = []

    def last(images: Sequence[Image.Image], prompt: str) -> torch.Tensor:
        seen.append((len(images), prompt))
        return torch.arange(len(images))  # any row of numbers will do

    kept = best_of(pipe, "a fox", scorer=last, of=3, **SIZE)  # type: ignore[arg-type]
    assert seen == [(3, "a fox")]
    assert [one.seed for one in kept] == [2]


def test_a_scorer_that_looks_at_each_alone_lets_all_but_the_best_go() -> None:
    class Alone:
        alone = True

        def __call__(self, images: Sequence[Image.Image], prompt: str) -> list[float]:
            gc.collect()
            held.append(sum(one() is not None for one in drawn))
            (image,) = images
            return [float(image.width % 4)]

    held: list[int] = []
    drawn: list[weakref.ref[Image.Image]] = []

    def pipe(prompt: str, *, generator: torch.Generator) -> Any:
        image = Image.new("RGB", (generator.initial_seed(), 1))
        drawn.append(weakref.ref(image))
        return SimpleNamespace(images=[image])

    kept = best_of(pipe, "a fox", scorer=Alone(), of=9, keep=2, seed=1)
    assert [(one.seed, one.score) for one in kept] == [(3, 3.0), (7, 3.0)]
    assert all(one.image.width == one.seed for one in kept)
    assert held == [1, 2, 3, 3, 3, 3, 3, 3, 3]

    def together(images: Sequence[Image.Image], prompt: str) -> list[float]:
        return [image.width % 4 for image in images]

    again = best_of(pipe, "a fox", scorer=together, of=9, keep=2, seed=1)
    assert [one[1:] for one in again] == [one[1:] for one in kept]


def test_of_equal_scores_the_first_drawn_wins() -> None:
    assert best([1.0, 3.0, 3.0, 2.0], 3) == [1, 2, 3]


def test_a_pairwise_judge_is_a_scorer() -> None:
    """The published tournament: yes before no; the surer yes, and the less sure no."""
    verdicts = [("no", 2.0), ("yes", 1.0), ("no", 0.5), ("yes", 3.0)]
    scores = [
        (100 if said == "yes" else 0) + (1 if said == "yes" else -1) * logit
        for said, logit in verdicts
    ]
    assert best(scores, 4) == [3, 1, 2, 0]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1.0], "1 scores for 2 pictures"),
        ([1.0, float("nan")], "the scorer gave .*nan"),
        ([1.0, "good"], "the scorer gave .*good"),
        ([1.0, None], "the scorer gave .*None"),
    ],
)
def test_scores_that_say_nothing_are_refused(
    pipe: SanaPipeline, scores: list[Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        best_of(pipe, "a fox", scorer=lambda images, prompt: scores, of=2, **SIZE)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"of": 2, "keep": 3}, "3 of 2 drawings cannot be kept"),
        ({"of": 0}, "1 of 0 drawings"),
        ({"of": 20_000}, "20000"),
        ({"prompt": ["a", "b"]}, "prompt is a list"),
        ({"generator": torch.Generator()}, "takes no generator"),
        ({"output_type": "latent"}, "takes no output_type"),
    ],
)
def test_what_cannot_be_chosen_is_refused_before_drawing(
    wrong: dict[str, Any], message: str
) -> None:
    def pipe(*_: Any, **__: Any) -> None:
        raise AssertionError("drew")

    arguments = {"prompt": "a fox", "scorer": redness, **wrong}
    with pytest.raises(ConfigError, match=message):
        best_of(pipe, **arguments)


def test_clip_says_the_cosine_of_each_picture_and_the_prompt(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_clip(tmp_path / "clip")
    images = [Image.new("RGB", (40, 40), (13 * i, 255 - 9 * i, 40)) for i in range(BATCH + 3)]
    scorer = clip_scorer(folder)
    found = scorer(images, "a red apple")
    encoder = DualEncoder(folder, dtype="float32", device="cpu")
    with torch.no_grad():
        text = encoder.texts(["a red apple"])[0]
        expected = [100 * float(encoder.pictures([image])[0] @ text) for image in images]
    assert found == pytest.approx(expected, abs=1e-3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DualEncoder, "texts", lambda *_: pytest.fail("read again"))
        assert scorer(images[:1], "a red apple") == pytest.approx(expected[:1], abs=1e-3)
    other = scorer(images[:1], "a fox")
    assert other != pytest.approx(expected[:1], abs=1e-3)
    assert len(set(found)) > 2
    with caplog.at_level(logging.WARNING):
        scorer(images[:1], "a red apple " * 20)
    assert "the scorer reads 16 tokens of a prompt of" in caplog.text
    with pytest.raises(MissingModelError, match="no such folder"):
        clip_scorer(tmp_path / "none")


@pytest.mark.parametrize("name", ["pipe", "scorer"])
def test_what_cannot_be_called_is_refused_before_drawing(name: str) -> None:
    given: dict[str, Any] = {"pipe": lambda *_, **__: pytest.fail("drawn"), "scorer": redness}
    with pytest.raises(ConfigError, match=f"{name}='missing' cannot be called"):
        best_of(prompt="a fox", **(given | {name: "missing"}))
