"""What the runs of all recipes keep: broken off they go on to the bit, and ranks learn as one."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.testing import assert_close

from command_line import sanakit
from sanakit.train.checkpoint import checkpoints, read_tensors
from sanakit.train.loop import train
from sanakit.train.runs.log import read_log
from small_runs import SmallRun, on_ranks, quiet
from tiny_sana import FAST, TinySana, tiny_prior, tiny_sana

STUDENT = ("peak_lr=0.001", "adversarial=0.5")
SHOWN = {"prompts": ["a tree"]}
TANGENT = (*STUDENT, "hop=0", "tangent_warmup=8")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A recipe, how it is broken off, and how near two ranks come to one."""

    recipe: str
    given: Mapping[str, Any] = field(default_factory=dict)
    settings: tuple[str, ...] = ()
    stop: int = 3
    """The batch that is being made ready when it is told to stop."""
    then: Mapping[str, Any] = field(default_factory=dict)
    """What is given otherwise when it goes on."""
    frozen: str = ""
    """A part of the recipe that must stay as it was."""
    ranked: tuple[str, ...] = ("ddp", "fsdp")
    images: int = 8
    atol: float = 1e-6
    blind: str = "attn2.to_k.bias"
    """What no loss sees, so that its gradients are rounding: a softmax the biases of keys."""
    parts: tuple[str, ...] = ("model", "optimizer")


CASES = {
    # An epoch is four batches: within it, and at its end.
    "diffusion": Case(recipe="diffusion_run", given=SHOWN, stop=2),
    "diffusion at the end of an epoch": Case(recipe="diffusion_run", stop=4, ranked=()),
    "LoRA": Case(
        recipe="diffusion_run", given={"lora": 2, **SHOWN}, then={"workers": 1}, ranked=("fsdp",)
    ),
    "prior": Case(recipe="diffusion_run", given={"prior": "prior"}),
    "ControlNet": Case(recipe="controlnet", given={"condition": "canny"}, frozen="transformer"),
    # An old policy that keeps half of itself from the second step on, so that it matters.
    "reward": Case(
        recipe="reward",
        given={"reward": ["tiny_reward:redness"]},
        settings=("old_rate=0.5",),
        stop=4,
        images=16,
    ),
    # Of a gradient of about nothing Adam makes a part of a step, 1e-3.
    # A hinge that is open for all does not see a bias of all.
    "hops": Case(
        recipe="sprint",
        settings=STUDENT,
        frozen="teacher",
        atol=5e-5,
        blind="last.bias",
        parts=("model",),
    ),
    "tangent": Case(
        recipe="sprint",
        settings=TANGENT,
        frozen="teacher",
        ranked=("ddp",),
        atol=5e-5,
        blind="last.bias",
        parts=("model",),
    ),
}


@pytest.fixture(scope="module")
def sana(tmp_path_factory: pytest.TempPathFactory) -> TinySana:
    return tiny_sana(tmp_path_factory.mktemp("sana"))


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_prior(tmp_path_factory.mktemp("prior"))


@pytest.fixture(scope="module")
def teacher(sana: TinySana, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    settings = [each for pair in (*FAST, "total_images=8") for each in ("--set", pair)]
    given = ("--data", sana.data, "--from", sana.model, "--out", folder)
    sanakit("train", "sprint-teacher", *given, *settings)
    return folder


@pytest.fixture(scope="module")
def small(sana: TinySana, prior: str, teacher: Path) -> Mapping[str, SmallRun]:
    def run_of(case: Case) -> SmallRun:
        start = teacher if case.recipe == "sprint" else sana.model
        given = {"data": str(sana.data), "start": str(start), **case.given}
        if "prior" in given:
            given["prior"] = prior
        return SmallRun(recipe=case.recipe, given=given, settings=case.settings)

    return {name: run_of(case) for name, case in CASES.items()}


def learned(run: Path, part: str) -> dict[str, Tensor]:
    return read_tensors(checkpoints(run)[-1], part)


@pytest.mark.parametrize("name", CASES)
def test_a_run_in_two_parts_is_bit_equal_to_one(
    name: str, small: Mapping[str, SmallRun], tmp_path: Path
) -> None:
    case, run = CASES[name], small[name]
    run = replace(run, settings=(*run.settings, "average_halflife=8"))
    assert run.train(tmp_path / "whole")
    recipe, config = run.build()
    frozen = getattr(recipe, case.frozen).state_dict() if case.frozen else {}
    before = {key: value.clone() for key, value in frozen.items()}
    honest, count = recipe.prepare, iter(range(1, 1000))

    def prepare(*given: Any) -> Any:
        if next(count) == case.stop:
            signal.raise_signal(signal.SIGINT)
        return honest(*given)

    recipe.prepare = prepare
    assert not train(recipe, config.loop, tmp_path / "parts", resume=False, report=quiet)
    assert_close(frozen, before, atol=0, rtol=0)
    again = replace(run, given={**run.given, **case.then})
    assert again.train(tmp_path / "parts", resume=True)
    for part in ("model", "optimizer", "average"):
        one, other = (learned(tmp_path / each, part) for each in ("whole", "parts"))
        assert one
        assert_close(other, one, atol=0, rtol=0)
    if "lora" in case.given:
        assert all(".lora_" in key for key in learned(tmp_path / "whole", "model"))


def test_two_ranks_learn_what_one_does_in_two_parts(
    small: Mapping[str, SmallRun], tmp_path: Path
) -> None:
    jobs = {}
    for name, case in CASES.items():
        shared = (*case.settings, f"total_images={case.images}", "peak_lr=0.001")
        if case.ranked:
            alone = replace(small[name], settings=(*shared, "accumulation=2"))
            assert alone.train(tmp_path / name / "alone"), name
        for strategy in case.ranked:
            settings = (*shared, "accumulation=1", f"strategy={strategy}")
            jobs[tmp_path / name / strategy] = replace(small[name], settings=settings)
    on_ranks(jobs, 2)
    for run in jobs:
        case, alone = CASES[run.parent.name], run.with_name("alone")
        for part in case.parts:
            one, other = (
                {key: value for key, value in learned(each, part).items() if case.blind not in key}
                for each in (alone, run)
            )
            assert one
            said = f"{run.parent.name} by {run.name}, {part}: {{}}".format
            assert_close(other, one, atol=case.atol, rtol=1e-5, msg=said)
        for line, expected in zip(read_log(run), read_log(alone), strict=True):
            for key in expected:
                if "loss" in key:
                    assert line[key] == pytest.approx(expected[key], abs=2e-4), (run, key)
        if "prompts" in case.given:
            assert list((run / "pictures").glob("*.png")), run
