"""Fine-tuning on own pictures: stages, resolutions, the commands."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from command_line import sanakit
from sanakit.errors import ConfigError, DataError
from sanakit.pipeline.components import load_components
from sanakit.train.checkpoint import checkpoints, read_tensors
from sanakit.train.loop import train
from sanakit.train.recipes.diffusion import DiffusionObjective
from sanakit.train.recipes.diffusion_run import (
    DiffusionData,
    at_resolution,
    begun_with_one_model,
    components_of_run,
    export_run,
    start_components,
)
from sanakit.train.runs.log import read_log
from sanakit.train.runs.run_config import save_run
from tiny import TRANSFORMER
from tiny_sana import FAST, TinySana, tiny_sana


@pytest.fixture(scope="module")
def sana(tmp_path_factory: pytest.TempPathFactory) -> TinySana:
    return tiny_sana(tmp_path_factory.mktemp("sana"))


def learned(run: Path, part: str = "model") -> dict[str, Tensor]:
    return read_tensors(checkpoints(run)[-1], part)


def test_it_learns_and_its_model_and_its_lora_are_drawn_with(
    sana: TinySana, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands of docs/training.md, on a model that fits a test."""
    monkeypatch.chdir(tmp_path)
    sets = [word for setting in FAST for word in ("--set", setting)]
    base = ("train", "diffusion", "--data", sana.data, "--from", sana.model)
    said, _ = sanakit(*base, "--out", "runs/mine", "--prompt", "a tree", *sets)
    assert "12 samples in 2 buckets" in said
    assert "next: sanakit train export runs/mine --out models/mine" in said
    assert sanakit("train", "diffusion", "--resume")[0].startswith("12 samples")
    assert "already holds a run" in sanakit(*base, "--out", "runs/mine", *sets, code=2)[1]
    said, _ = sanakit("train", "export", "runs/mine")
    assert said == "models/mine: draw with `sanakit generate PROMPT --model models/mine`\n"
    exported = load_components("models/mine").transformer.state_dict()
    assert_close(exported, learned(Path("runs/mine")), atol=0, rtol=0)
    assert (
        "trained all weights, and no LoRA"
        in (sanakit("generate", "a tree", "--lora", "runs/mine", "--model", sana.model, code=2)[1])
    )

    lora = (*base, "--lora", 2, "--out", "runs/lora", *sets, "--set", "peak_lr=0.3")
    assert "draw: sanakit generate PROMPT --lora runs/lora" in sanakit(*lora)[0]
    said, _ = sanakit("train", "export", "runs/lora", "--out", "models/lora")
    assert said.endswith("`sanakit generate PROMPT --lora models/lora`\n")
    assert [path.name for path in Path("models/lora").iterdir()] == [
        "pytorch_lora_weights.safetensors"
    ]
    sanakit("train", "export", "runs/lora", "--out", "models/merged", "--merged")
    draws = {
        "plain": ("--model", sana.model),
        "run": ("--lora", "runs/lora"),
        "file": ("--lora", "models/lora", "--model", sana.model),
        "merged": ("--model", "models/merged"),
        "half": ("--lora", "runs/lora:0.5"),
    }
    for name, arguments in draws.items():
        sanakit("generate", "a tree", *arguments, "-o", f"{name}.png", "--steps", 3)
    pictures = {name: Image.open(f"{name}.png").tobytes() for name in draws}
    assert pictures["run"] == pictures["file"]
    assert len({pictures[name] for name in ("plain", "run", "half")}) == 3
    differing = [abs(a - b) for a, b in zip(pictures["run"], pictures["merged"], strict=True)]
    assert max(differing) <= 1
    sanakit("again", "run.png", "-o", "again.png")
    assert Image.open("again.png").tobytes() == pictures["run"]


def test_a_text_encoder_learns_along_and_is_exported_with_its_instruction(
    sana: TinySana, tmp_path: Path
) -> None:
    told = {"tune_text": True, "instruction": "draw this: "}
    recipe, config, run = sana.run("total_images=8", **told)
    folder = tmp_path / "run"
    save_run(run, folder, resume=False)
    train(recipe, config, folder, resume=False, report=str)
    export_run(folder, tmp_path / "model")
    exported = load_components(tmp_path / "model")
    assert exported.defaults.instruction == ("draw this: ",)
    texts = exported.prompts.text_encoder.llm.state_dict()
    learnt = {f"text_encoder.{name}": value for name, value in texts.items()}
    learnt |= {f"transformer.{k}": v for k, v in exported.transformer.state_dict().items()}
    assert_close(learnt, learned(folder), atol=0, rtol=0)
    before = load_components(sana.model).prompts.text_encoder.llm.state_dict()
    assert all(not torch.equal(value, before[name]) for name, value in texts.items())
    second = sana.recipe(start=str(folder), lora=2)
    assert second.encoders.prompts.instruction == ("draw this: ",)
    assert_close(second.encoders.prompts.text_encoder.llm.state_dict(), texts, atol=0, rtol=0)
    assert begun_with_one_model(folder) is None
    with pytest.raises(ConfigError, match="--tune-text with a LoRA"):
        sana.run(lora=2, **told)
    with pytest.raises(ConfigError, match="--states cached"):
        sana.run(states="cached", instruction="")


def test_a_loss_on_few_pictures_falls(sana: TinySana, tmp_path: Path) -> None:
    recipe, config, _ = sana.run("total_images=480", "null_chance=0")
    with torch.no_grad():
        before = recipe.evaluate(recipe.module)["seen_loss"]
    train(recipe, config, tmp_path, resume=False, report=str)
    assert read_log(tmp_path)[-1]["held_seen_loss"] < 0.8 * before


def test_a_run_from_scratch_begins_as_published_and_a_run_goes_on_from_it(
    sana: TinySana, tmp_path: Path
) -> None:
    recipe, config, run = sana.run(preset="tiny")
    module = recipe.module
    assert torch.equal(module.caption_norm.weight, torch.full((8,), 0.01))
    assert module.config.sample_size == 2  # of 64 px
    assert module.config.caption_channels == 8
    other = sana.recipe("seed=1", preset="tiny").module
    assert not torch.equal(other.proj_out.weight, module.proj_out.weight)
    assert torch.equal(sana.recipe(preset="tiny").module.proj_out.weight, module.proj_out.weight)
    parts = {"autoencoder": str(sana.model), "text_encoder": str(sana.model)}
    assert sana.run(start=None, preset="tiny", **parts)[0].defaults.scheduler.flow_shift == 3.0
    with pytest.raises(ConfigError, match="there is no text encoder"):
        sana.run(start=None, preset="tiny", autoencoder=str(sana.model))
    with pytest.raises(ConfigError, match="nothing to begin with"):
        sana.run(start=None)
    with pytest.raises(ConfigError, match="no preset 'sana-9b'"):
        sana.run(preset="sana-9b")

    train(recipe, config, tmp_path / "first", resume=False, report=str)
    save_run(run, tmp_path / "first", resume=True)
    first = learned(tmp_path / "first", "average")
    assert_close(components_of_run(tmp_path / "first").transformer.state_dict(), first)
    second = sana.recipe(start=str(tmp_path / "first"), lora=2)
    assert torch.equal(second.module.proj_out.weight, first["proj_out.weight"])


def test_the_next_stage_has_its_size_and_late_positions_and_the_weights_of_before(
    sana: TinySana,
) -> None:
    parts = load_components(sana.model)
    told: list[str] = []
    large = DiffusionData(data="x", start=str(sana.model), resolution=2048)
    started = start_components(large, DiffusionObjective(), report=told.append).transformer
    assert (started.config.sample_size, started.config.interpolation_scale) == (64, 1.0)
    assert "draws 64 px (positions None), this run goes to 2048 px (positions 1.0)" in told[0]
    assert_close(started.state_dict(), parts.transformer.state_dict(), atol=0, rtol=0)
    for side, settings, scale in (
        (128, DiffusionObjective(), 2.0),
        (32, DiffusionObjective(), None),
        (64, DiffusionObjective(interpolation_scale="keep"), None),
        (64, DiffusionObjective(interpolation_scale=None), None),
        (16, DiffusionObjective(interpolation_scale=0.5), 0.5),
    ):
        assert (
            at_resolution(TRANSFORMER, side, settings.interpolation_scale).interpolation_scale
            == scale
        )
    # A size counts latents, however many of them a patch holds.
    coarse = replace(TRANSFORMER, patch_size=2)
    assert at_resolution(coarse, 8, "auto").sample_size == 8


def test_shards_that_were_built_anew_are_not_gone_on_with(tmp_path: Path) -> None:
    mine = tiny_sana(tmp_path)
    run = mine.run()[2]
    assert mine.run(index=run.data["index"])[2] == run
    other = tiny_sana(tmp_path / "other", {(64, 64): [6, 2]})
    with pytest.raises(DataError, match="was built anew since the run began"):
        other.run(index=run.data["index"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--data", "nowhere", "--from", "glyph"), "nowhere: no such folder"),
        (("--data", "EMPTY", "--from", "glyph"), "holds no training set"),
        (("--data", "SET"), "nothing to begin with"),
        (("--from", "glyph"), "--data is missing"),
        (("--data", "SET", "--from", "MODEL", "--set", "flow_shft=1"), "no setting 'flow_shft'"),
        (("--data", "SET", "--from", "MODEL", "--set", "lora_alpha=1"), "lora_alpha has no"),
        (("--data", "SET", "--from", "MODEL", "--lora", "99"), "lora_rank=99"),
        (("--data", "SET", "--from", "MODEL", "--set", "flow_shift=0"), "must be more than 0"),
        (("--data", "SET", "--from", "MODEL", "--states", "some"), "--states 'some' is unknown"),
        (("--data", "SET", "--from", "MODEL", "--states", "cached"), "no latents of"),
        (("--resume",), "runs holds no run of `sanakit train diffusion` to resume"),
        (("--resume", "--out", "nowhere", "--lora", "4"), "nowhere is no folder of a run"),
    ],
)
def test_what_cannot_be_trained_is_said_in_one_line_and_leaves_no_file(
    sana: TinySana,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    places = {"SET": str(sana.data), "MODEL": str(sana.model), "EMPTY": "empty"}
    typed = [places.get(word, word) for word in arguments]
    _, error = sanakit("train", "diffusion", *typed, code=2)
    assert said in error
    assert error.startswith("error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_run_that_is_told_to_stop_says_how_to_go_on_and_a_second_one_is_refused(
    sana: TinySana, tmp_path: Path
) -> None:
    run = tmp_path / "a run"
    command = [sys.executable, "-m", "sanakit", "train", "diffusion"]
    command += ["--out", str(run), "--steps", "100000"]
    start = ["--data", str(sana.data), "--from", str(sana.model), "--batch-size", "4"]
    start += ["--lr", "1e-4", "--set", "compute_dtype=float32", "--set", "pictures_every=0"]

    def stopped(words: list[str], number: signal.Signals) -> tuple[str, str]:
        """What it says up to its first step, and of its end."""
        running = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
        )
        assert running.stdout is not None
        said = ""
        for line in running.stdout:
            said += line
            if line.startswith("step "):
                break
        if number == signal.SIGINT:
            second = subprocess.run(
                [*command, "--resume"], capture_output=True, text=True, check=False
            )
            assert second.returncode == 2
            assert f"in use by process {running.pid} (sanakit train diffusion)" in second.stderr
        running.send_signal(number)
        _, error = running.communicate(timeout=60)
        assert running.returncode == 128 + number
        return said, error

    for words, number in (
        ([*command, *start], signal.SIGINT),
        ([*command, "--resume"], signal.SIGTERM),
    ):
        before = checkpoints(run)[-1:]
        said, error = stopped(words, number)
        assert "holds what was learned of" in error
        assert f"go on: sanakit train diffusion --resume --out '{run}'" in error
        for kept in before:
            assert f"resumed at {int(kept.name.rpartition('-')[2])} images" in said
    images = int(checkpoints(run)[-1].name.rpartition("-")[2])
    last = [*command[:-1], str(images // 4 + 1), "--resume"]
    done = subprocess.run(last, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"resumed at {images} images" in done.stdout
