"""The recipe as a whole: the tiny preset from nothing to a model that draws; its presets."""

from __future__ import annotations

import json
import re
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks import sheet
from PIL import Image
from recipes.glyph.commands.app import app as here
from recipes.glyph.presets import known_presets, read_preset
from recipes.glyph.running import Command, Ended, execute
from recipes.glyph.speedrun import main
from recipes.glyph.stages import HERE, LIBRARY, STAGES, Work, required
from typer.testing import CliRunner

from command_line import sanakit
from sanakit.cli.main import app
from sanakit.errors import ConfigError
from sanakit.pipeline.components import load_components
from sanakit.pipeline.prompts import PromptCutWarning
from sanakit.train.checkpoint import checkpoints

APPS = {HERE: here, LIBRARY: app}


class InProcess:
    """Runs commands here, as a second process would take ten seconds to start."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.failing = ""

    def __call__(self, command: Command) -> Ended:
        words = [word for word in command.arguments if not word.startswith("-")]
        self.ran.append(" ".join(words[: 2 if words[0] in ("train", "data", "eval") else 1]))
        if self.failing and self.failing in self.ran[-1]:
            return Ended(code=4)
        if command.module in APPS:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", PromptCutWarning)  # long captions of the tiny set
                result = CliRunner().invoke(APPS[command.module], list(command.arguments))
            assert result.exit_code == 0, (result.output, result.exception)
        else:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", [command.module, *command.arguments])
                sheet.main()
        return Ended(code=0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, InProcess]]:
    """A run of the tiny preset that fails before the transformer, and is then finished."""
    out = tmp_path_factory.mktemp("recipe") / "run"
    run = InProcess()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(out.parent)
        run.failing = "train diffusion"
        assert main(["tiny", "--out", str(out)], run=run) == 2
        run.failing = ""
        assert main(["tiny", "--out", str(out)], run=run) == 0
        yield out, run


def test_every_stage_is_done_once_by_commands_of_the_library_where_it_has_them(
    whole: tuple[Path, InProcess],
) -> None:
    _, run = whole
    pictures = ["samples", "data scan", "data build"]
    assert run.ran[:-2] == [
        *("build", "tokenizer", *pictures, *pictures, "lm"),
        *("train autoencoder", "train autoencoder", "start", "data encode"),
        *("train diffusion", "train diffusion", "train export"),
    ]
    assert run.ran[-1] == "eval autoencoder"


def test_it_draws_in_the_end_with_a_text_encoder_that_learned_along(
    whole: tuple[Path, InProcess], tmp_path: Path
) -> None:
    out, _ = whole
    told = ("--model", out / "model", "-o", tmp_path / "star.png", "--steps", 2)
    sanakit("generate", "a star of 5", *told)
    with Image.open(tmp_path / "star.png") as picture:
        assert picture.size == (64, 64)
        assert len(picture.getcolors(99999) or []) > 10
    with Image.open(out / "contact-sheet.png") as page:
        assert page.width > 64
    before, after = (load_components(out / name) for name in ("start", "model"))
    assert after.defaults == before.defaults
    assert after.defaults.guidance_scale == 5
    pairs = zip(
        before.prompts.text_encoder.llm.parameters(),
        after.prompts.text_encoder.llm.parameters(),
        strict=True,
    )
    # More than the rounding of how a model is stored.
    assert any((one - other).abs().max() > 0.01 * one.abs().max() for one, other in pairs)


def test_what_is_finished_is_not_done_again_and_other_settings_are_refused(
    whole: tuple[Path, InProcess], capsys: pytest.CaptureFixture[str]
) -> None:
    out, run = whole
    run.ran = []
    assert main(["tiny", "--out", str(out)], run=run) == 0
    assert run.ran == []
    assert set(json.loads((out / "cost.json").read_text())["seconds"]) == set(STAGES)
    assert main(["tiny", "--out", str(out), "--set", "data.size=128"], run=run) == 2
    assert "was begun with [data]" in capsys.readouterr().err
    # How many share the work changes nothing that is made.
    assert main(["tiny", "--out", str(out), "--set", "whole.workers=9"], run=run) == 0
    (out / "contact-sheet.png").unlink()
    assert required(Work(preset=read_preset("tiny"), out=out)) == {"sheet", "export"}


def test_a_training_goes_on_by_its_own_file(whole: tuple[Path, InProcess]) -> None:
    out, _ = whole
    work = Work(preset=read_preset("tiny", ["diffusion.images=99"]), out=out)
    assert checkpoints(work.run("diffusion"))
    assert not STAGES["diffusion"].is_done(work)
    (command,) = STAGES["diffusion"].commands(work)
    assert command.arguments[-1] == "--resume"


# Presets.


@pytest.mark.parametrize("name", known_presets())
def test_a_plan_names_commands_that_there_are_and_leaves_no_file(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([name, "--plan"]) == 0
    told = capsys.readouterr().out
    assert [line[3:] for line in told.splitlines() if line.startswith("==")] == list(STAGES)
    assert list(tmp_path.iterdir()) == []
    preset = read_preset(name)
    assert (Path(__file__).parents[3] / preset.ending.prompts).is_file()
    assert f"total_images={preset.diffusion.images}" in told


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("diffusion.imagse=3", r"\[diffusion\] has no 'imagse'\n.*images"),
        ("difusion.images=3", r"no section 'difusion'\n.*diffusion"),
        ("diffusion.images=many", r"images takes a value like"),
        ("data.without=clipart", r"without takes a value like"),
        ("images=3", r"like --set diffusion\.images=100000"),
    ],
)
def test_what_a_preset_does_not_know_is_refused_with_the_nearest_name(
    change: str, said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        read_preset("tiny", [change])
    assert re.search(said, str(error.value)), str(error.value)


def test_a_file_of_ones_own_is_a_preset_and_a_slip_in_it_is_named(tmp_path: Path) -> None:
    own = tmp_path / "mine.ini"
    own.write_text("[diffusion]\nimages = 5\n[whole]\nshpae = 3\n")
    with pytest.raises(ConfigError, match=r"mine.ini: \[whole\] has no 'shpae'"):
        read_preset(str(own))
    own.write_text("[diffusion]\nimages = 5\n")
    assert read_preset(str(own)).diffusion.images == 5
    own.write_text("images = 5\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_preset(str(own))
    with pytest.raises(ConfigError, match="presets: cpu, glyph2, gpu, tiny"):
        read_preset("big")


def test_drawings_that_are_there_are_drawn_again_and_packages_are_looked_for(
    tmp_path: Path,
) -> None:
    (tmp_path / "drawings").mkdir()
    work = Work(preset=read_preset("gpu"), out=tmp_path, inputs=tmp_path)
    (command,) = STAGES["data"].commands(work)
    assert f"--from {tmp_path / 'drawings'}" in str(command)
    limited = replace(work, preset=read_preset("cpu"))
    with pytest.raises(ConfigError, match="limit=40000 of drawings"):
        list(STAGES["data"].commands(limited))
    (tmp_path / "drawings").rmdir()
    (command,) = STAGES["data"].commands(limited)
    assert f"--packages {tmp_path} --limit 40000" in str(command)
    (command,) = STAGES["tokenizer"].commands(limited)
    assert f"--packages {tmp_path}" in str(command)


# Commands.


SAVES = """
import signal, sys, time
def save(number, frame):
    open(sys.argv[1], "w").write("saved")
    sys.exit(3)
signal.signal(signal.SIGTERM, save)
import os
os.kill(os.getppid(), signal.SIGINT)
time.sleep(60)
"""


def test_a_command_may_save_when_it_is_told_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "saves.py").write_text(SAVES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    began = time.monotonic()
    ended = execute(Command(module="saves", arguments=[str(tmp_path / "saved")]))
    assert ended == Ended(code=3, interrupted=True)
    assert (tmp_path / "saved").read_text() == "saved"
    assert time.monotonic() - began < 30


def test_ranks_are_started_by_torchrun_and_shown_as_one_would_type_them() -> None:
    command = Command(module="sanakit", arguments=["train", "x"], ranks=2)
    assert str(command) == "torchrun --standalone --nproc-per-node 2 -m sanakit train x"
    assert command.line[1:5] == [
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
    ]
    assert str(replace(command, ranks=1)) == "sanakit train x"
    assert str(Command(module=HERE, arguments=["lm"])) == "python -m recipes.glyph lm"


def test_a_command_that_leaves_nothing_ends_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def idle(command: Command) -> Ended:
        return Ended(code=0)

    assert main(["tiny", "--out", str(tmp_path / "run")], run=idle) == 2
    assert "data ended and left nothing" in capsys.readouterr().err
    told = ["tiny", "--out", str(tmp_path / "run")]
    assert main(told, run=lambda command: Ended(code=0, interrupted=True)) == 130
    assert main([*told, "--inputs", "nowhere"], run=idle) == 2
    assert "is no folder" in capsys.readouterr().err
