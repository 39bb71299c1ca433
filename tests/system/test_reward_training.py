"""Training with a reward: what is learned from, the old policy, the command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from command_line import sanakit
from sanakit.errors import ConfigError, DataError
from sanakit.nn.lora import lora_layers
from sanakit.train.checkpoint import checkpoints, read_tensors
from sanakit.train.loop import train
from sanakit.train.recipe import Timers
from sanakit.train.recipes.lora import NAME
from sanakit.train.recipes.reward import (
    OLD,
    Asked,
    RewardObjective,
    advantages,
    best_and_worst,
    prompts_of,
)
from sanakit.train.sample_schedule import SampleSchedule
from tiny_reward import SMALL, redness, reward_run
from tiny_sana import TinySana, tiny_sana

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def sana(tmp_path_factory: pytest.TempPathFactory) -> TinySana:
    return tiny_sana(tmp_path_factory.mktemp("sana"))


def test_an_old_policy_is_kept_that_follows_the_new_one(sana: TinySana, tmp_path: Path) -> None:
    recipe, run = reward_run(sana, "old_rate=0.5", "total_images=16")
    assert train(recipe, run.loop, tmp_path / "run", resume=False, report=str)
    both = read_tensors(checkpoints(tmp_path / "run")[-1], "model")
    old = {name for name in both if f".{OLD}." in name}
    assert len(old) == len(both) / 2
    assert any(not torch.equal(both[name], both[name.replace(OLD, NAME)]) for name in old)


def first_step(sana: TinySana, *settings: str, **how: Any) -> tuple[Any, Asked, dict[str, Tensor]]:
    recipe, run = reward_run(sana, *settings, **how)
    schedule = SampleSchedule(seed=0, batch_size=8, parts=run.loop.accumulation)
    batch = recipe.prepare(next(recipe.stream(schedule)), CPU, Timers(CPU))
    return recipe, batch, recipe.loss(batch)


def test_parts_do_not_change_what_is_drawn_or_the_loss(sana: TinySana) -> None:
    recipe, batch, found = first_step(sana, "accumulation=1")
    whole = recipe._step.x0
    recipe, batch, half = first_step(sana, "accumulation=2")
    assert_close(recipe._step.x0, whole, atol=1e-5, rtol=1e-5)
    other = recipe.loss(recipe.prepare(Asked(**{**vars(batch), "part": 1}), CPU, Timers(CPU)))
    assert_close((half["loss"] + other["loss"]) / 2, found["loss"], atol=1e-5, rtol=1e-5)


def test_a_group_is_of_one_prompt_and_its_best_and_worst_are_learned_from(sana: TinySana) -> None:
    seen: list[tuple[int, str]] = []

    def scorer(images: Sequence[Image.Image], prompt: str) -> list[float]:
        seen.append((len(images), prompt))
        return [2.0, 0.0, 1.0, 4.0]

    recipe, batch, _ = first_step(sana, scorer=scorer)
    assert [count for count, _ in seen] == [4, 4]
    assert batch.prompts == [prompt for count, prompt in seen for _ in range(count)]
    assert seen[0][1] != seen[1][1]
    # Of a group the best has place 3 and the worst place 1; each is learned from at two levels.
    deviation = np.std([2, 0, 1, 4]) + 1e-4
    expected = [(score - 1.75) / deviation / 10 + 0.5 for score in (0, 0, 4, 4)]
    step = recipe._step
    assert step.rows.tolist() == [1, 1, 3, 3, 5, 5, 7, 7]
    assert_close(step.r[step.rows], torch.tensor(2 * expected, dtype=torch.float32))
    for row in range(8):
        levels = step.level.sigma[row - row % 2 : row - row % 2 + 2]
        assert levels[0] != levels[1]


def test_drawings_are_those_of_the_old_policy(sana: TinySana) -> None:
    recipe, _ = reward_run(sana)
    batch = next(recipe.stream(SampleSchedule(seed=0, batch_size=8)))
    rng = torch.Generator().manual_seed(1)

    def drawn(step: int, adapter: str) -> Tensor:
        with torch.no_grad():
            for layer in lora_layers(recipe.transformer).values():
                up = layer.lora_B[adapter].get_parameter("weight")
                up.copy_(torch.randn(up.shape, generator=rng))
        asked = Asked(**{**vars(batch), "step": step})
        recipe._text = recipe._encoded(asked.prompts, CPU)
        return recipe._drawn_and_scored(asked).x0

    before = drawn(0, NAME)  # which does not act
    assert torch.equal(drawn(0, NAME), before)
    assert not torch.allclose(drawn(0, OLD), before)


def test_the_old_policy_follows_as_its_schedule_says(sana: TinySana) -> None:
    objective = RewardObjective()
    assert [objective.kept_by_old(step) for step in (0, 1, 400, 9000)] == [0, 0.001, 0.4, 0.5]
    recipe, _ = reward_run(sana, "old_rate=0.25", "old_most=1")
    layer = next(iter(lora_layers(recipe.transformer).values()))
    new, old = (layer.lora_A[name].get_parameter("weight") for name in (NAME, OLD))
    assert not old.requires_grad
    with torch.no_grad():
        new.fill_(1.0)
        old.fill_(5.0)
    batch = next(recipe.stream(SampleSchedule(seed=0, batch_size=8, images_seen=8)))
    recipe.prepare(batch, CPU, Timers(CPU))
    assert_close(old.detach(), torch.full_like(old, 0.25 * 5 + 0.75))


def test_advantages_are_of_the_group_and_in_units_of_all() -> None:
    rewards = torch.tensor([[1.0, 3.0], [10.0, 10.0]], dtype=torch.float64)
    deviation = np.std([1, 3, 10, 10]) + 1e-4
    expected = torch.tensor([[-1.0, 1.0], [0.0, 0.0]], dtype=torch.float64) / deviation / 10 + 0.5
    assert_close(advantages(rewards, 5.0), expected)
    assert advantages(1e6 * rewards, 0.01).flatten().tolist() == [0.0, 1.0, 0.5, 0.5]
    # A step whose rewards are all alike teaches nothing.
    assert advantages(torch.ones(2, 3, dtype=torch.float64), 5.0).unique().tolist() == [0.5]


def test_best_and_worst_are_half_each_and_ties_are_the_first_drawn() -> None:
    rewards = torch.tensor([[3.0, 1.0, 2.0, 5.0, 4.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    assert best_and_worst(rewards, 3).tolist() == [[1, 3, 4], [0, 1, 4]]
    assert best_and_worst(rewards, 5).tolist() == [[0, 1, 2, 3, 4]] * 2


def test_prompts_come_of_a_file_or_a_set_each_once(sana: TinySana, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("# mine\na tree\n\n  a fox \na tree\n")
    assert prompts_of(str(file)) == ["a tree", "a fox"]
    assert len(prompts_of(str(sana.data))) == len(set(prompts_of(str(sana.data)))) > 1
    file.write_text("\n")
    with pytest.raises(DataError, match="holds no prompt"):
        prompts_of(str(file))


def test_other_prompts_are_not_gone_on_with(sana: TinySana, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a tree\na fox\n")
    _, run = reward_run(sana, data=str(file))
    reward_run(sana, data=str(file), index=run.data["index"])
    file.write_text("a fox\na tree\n")
    with pytest.raises(DataError, match="other prompts than when the run began"):
        reward_run(sana, data=str(file), index=run.data["index"])


OWN = """
import numpy as np

def redness(images, prompt):
    return [float(np.asarray(one)[..., 0].mean()) for one in images]

def raises(images, prompt):
    raise KeyError("colour")

def few(images, prompt):
    return [1.0]

def nan(images, prompt):
    return [float("nan")] * len(images)

NUMBER = 3
"""


def test_the_command_trains_goes_on_draws_and_exports(sana: TinySana, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    run, settings = tmp_path / "run", [each for pair in SMALL for each in ("--set", pair)]
    reward = f"{tmp_path / 'own.py'}:redness"
    begun = ("train", "reward", "--data", sana.data, "--from", sana.model, "--reward", reward)
    out, _ = sanakit(
        *begun, "--prompt", "a tree", "--out", run, *settings, "--set", "total_images=16"
    )
    assert f"--lora {run} --guidance 1" in out
    assert len(list((run / "pictures").glob("*.png"))) == 1
    more = ("--resume", "--out", run, "--reward", reward, "--set", "total_images=24")
    out, _ = sanakit("train", "reward", *more)
    assert "resumed at 16 images" in out
    drawn = []
    for told in ((), ("--lora", run)):
        call = ("generate", "a tree", "--model", sana.model, "--steps", 2, "--guidance", 1)
        sanakit(*call, *told, "-o", tmp_path / "drawn.png")
        drawn.append(np.asarray(Image.open(tmp_path / "drawn.png")))
    assert not np.array_equal(*drawn)
    sanakit("train", "export", run, "--merged", "--out", tmp_path / "merged")
    sanakit("train", "show", run)
    out, _ = sanakit(*begun, *settings, "--dry-run")
    assert "learn" in out


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("raises", "raised KeyError"),
        ("few", "1 scores for 4 pictures"),
        ("nan", "nan"),
        ("none", "cannot be had"),
        ("NUMBER", "is 3"),
    ],
)
def test_a_reward_that_is_none_is_told_plainly(
    sana: TinySana, tmp_path: Path, function: str, said: str
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    settings = [each for pair in SMALL for each in ("--set", pair)]
    _, error = sanakit(
        *("train", "reward", "--data", sana.data, "--from", sana.model, "--out", tmp_path / "run"),
        *("--reward", f"{tmp_path / 'own.py'}:{function}", *settings),
        code=2,
    )
    assert said in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "settings", "said"),
    [
        ({"data": None}, (), "--data is missing"),
        ({"start": None}, (), "--from is missing"),
        ({"reward": None}, (), "--reward is missing"),
        ({}, ("group=1",), "group=1 must be at least 2"),
        ({}, ("keep=5",), r"keep=5 of a group must be in \[2, 4\]"),
        ({}, ("levels=4",), "levels=4: a drawing goes through 3"),
        ({}, ("batch_size=6",), "6 drawings of a rank are no whole number of groups of 4"),
        ({}, ("accumulation=3",), "accumulation=3: 8 rows"),
        ({}, ("nft_beta=0",), "nft_beta=0"),
        ({}, ("null_chance=0",), "no setting 'null_chance'"),
    ],
)
def test_what_cannot_be_trained_is_said_before_it_begins(
    sana: TinySana, arguments: dict[str, Any], settings: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        reward_run(sana, *settings, **arguments)


def test_what_is_learned_raises_the_reward(sana: TinySana, tmp_path: Path) -> None:
    settings = ("total_images=480", "batch_size=24", "group=8", "keep=8", "peak_lr=0.003")
    recipe, run = reward_run(sana, *settings, "accumulation=1")
    before = recipe.evaluate(recipe.module)["seen_reward"]
    assert train(recipe, run.loop, tmp_path, resume=False, report=str)
    assert recipe.evaluate(recipe.module)["seen_reward"] > before + 1
    assert redness([Image.new("RGB", (2, 2), (255, 0, 0))], "") == [255]
