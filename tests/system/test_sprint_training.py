"""Models of few steps of one's own: the commands, what is measured, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from command_line import sanakit
from sanakit.errors import ConfigError
from sanakit.pipeline.components import read_defaults
from sanakit.pipeline.networks import SanaTransformer2DModel
from sanakit.pipeline.schedulers import SCMScheduler
from sanakit.train.checkpoint import checkpoints, read_tensors
from sanakit.train.recipes import sprint, sprint_teacher
from sanakit.train.recipes.sprint import SprintRecipe
from sanakit.train.runs.run_config import RunConfig
from tiny_sana import FAST, TinySana, tiny_sana

STUDENT = ("peak_lr=0.001", "adversarial=0.5")
TANGENT = ("hop=0", "tangent_warmup=8")


@pytest.fixture(scope="module")
def sana(tmp_path_factory: pytest.TempPathFactory) -> TinySana:
    return tiny_sana(tmp_path_factory.mktemp("sana"))


@pytest.fixture(scope="module")
def teacher(sana: TinySana, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher by the command."""
    run = tmp_path_factory.mktemp("runs") / "teacher"
    settings = [each for pair in FAST for each in ("--set", pair)]
    out, _ = sanakit(
        *("train", "sprint-teacher", "--data", sana.data, "--from", sana.model, "--out", run),
        *(*settings, "--set", "total_images=8"),
    )
    assert f"sanakit train sprint --data SET --from {run}" in out
    return run


def run_of(
    sana: TinySana, teacher: Path, *settings: str, **arguments: Any
) -> tuple[SprintRecipe, RunConfig]:
    given = {"data": str(sana.data), "start": str(teacher), **arguments}
    run = sprint.new_run(given, [*FAST, *STUDENT, *settings])
    return sprint.build(run, report=lambda line: None)


def test_the_command_makes_a_model_that_both_draw_with_in_two_steps(
    sana: TinySana, teacher: Path, tmp_path: Path
) -> None:
    run = tmp_path / "few"
    settings = [each for pair in (*FAST, *STUDENT) for each in ("--set", pair)]
    out, _ = sanakit(
        *("train", "sprint", "--data", sana.data, "--from", teacher, "--held", sana.data),
        *("--out", run, "--prompt", "a tree", *settings),
    )
    assert f"--model {run} --steps 2" in out
    (grid,) = (run / "pictures").glob("*.png")
    with Image.open(grid) as picture:
        assert picture.size == (6 * 64, 64)  # 1, 2 and 4 steps of two seeds
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert any("held_from_end" in line for line in log)
    assert {"consistency", "apart", "adversarial", "discriminator"} <= log[0].keys()
    drawn = []
    for steps in (1, 2):
        picture = tmp_path / f"{steps}.png"
        sanakit("generate", "a tree", "--model", run, "--steps", steps, "-o", picture)
        drawn.append(np.asarray(Image.open(picture)))
    assert not np.array_equal(*drawn)
    defaults = read_defaults(run)
    assert isinstance(defaults.scheduler, SCMScheduler)
    own = SanaTransformer2DModel.from_pretrained(run, subfolder="transformer")
    average = read_tensors(checkpoints(run)[-1], "average")
    assert_close(own.state_dict()["proj_out.weight"], average["transformer.proj_out.weight"])
    theirs = diffusers.SanaTransformer2DModel.from_pretrained(run / "transformer")
    x, text = torch.randn(1, 4, 2, 2), torch.randn(1, 3, 8)
    level, guidance = torch.tensor([0.4]), torch.tensor([0.45])
    with torch.no_grad():
        wanted = theirs(x, text, level, guidance=guidance).sample
        assert_close(own(x, text, level, guidance).sample, wanted, atol=1e-5, rtol=1e-5)
    sanakit("train", "show", run)


def test_a_teacher_draws_as_its_model_does_and_in_diffusers(teacher: Path, tmp_path: Path) -> None:
    picture = tmp_path / "tree.png"
    sanakit("generate", "a tree", "--model", teacher, "--steps", 2, "-o", picture)
    assert picture.is_file()
    config = diffusers.SanaTransformer2DModel.load_config(teacher / "transformer")
    assert config["timestep_scale"] == 0.001
    assert config["qk_norm"] == "rms_norm_across_heads"
    assert not config["guidance_embeds"]
    _, error = sanakit("train", "export", teacher, "--out", tmp_path / "model", code=2)
    assert "is a model already" in error


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("flow_shift=3",), "has no meaning for a student"),
        (("levels=uniform", "level_mean=0", "level_std=1"), "has no meaning for a student"),
        (("guidance_scales=[]",), "must be positive numbers"),
        (("head_blocks=[2]",), "the transformer has 2 blocks"),
        (("max_time_chance=2",), "must be in [0, 1]"),
        (("hop=2",), "hop=2 must be in [0, 1]"),
        (("tangent_warmup=8",), "no tangent is taken"),
        (("adversarial=0", "judge_std=2"), "there is no discriminator"),
        (("adversarial=0", "head_blocks=[0]"), "there is no discriminator"),
        (("lora_rank=2",), "no setting 'lora_rank'"),
    ],
)
def test_settings_of_no_student_are_refused(
    sana: TinySana, teacher: Path, settings: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        run_of(sana, teacher, *settings)
    assert said in f"{caught.value} {caught.value.hint}"


def test_each_stage_says_what_it_begins_with(sana: TinySana, teacher: Path) -> None:
    with pytest.raises(ConfigError, match="is no teacher of few steps") as caught:
        run_of(sana, sana.model)
    assert f"sanakit train sprint-teacher --from {sana.model}" in str(caught.value.hint)
    given = {"data": str(sana.data), "start": str(teacher)}
    with pytest.raises(ConfigError, match="is a teacher already"):
        sprint_teacher.build(sprint_teacher.new_run(given, FAST), report=str)
    for missing in ("data", "start"):
        with pytest.raises(ConfigError, match="is missing"):
            sprint.new_run({**given, missing: None})


def test_without_an_adversarial_loss_there_is_no_discriminator(
    sana: TinySana, teacher: Path
) -> None:
    recipe, _ = run_of(sana, teacher, "adversarial=0", *TANGENT)
    assert recipe.discriminator is None
    assert set(recipe.module.keys()) == {"transformer", "log_variance"}
    recipe, _ = run_of(sana, teacher, "adversarial=0")
    assert set(recipe.module.keys()) == {"transformer"}
