"""The stages: what each needs, the commands that make it, and how to see that it is there."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from recipes.glyph.data.pictures import SUMMARY, store_folder
from recipes.glyph.data.store import INDEX as STORE
from recipes.glyph.made_up import write_made_up
from recipes.glyph.presets import Preset, Training
from recipes.glyph.running import ROOT, Command, Ended
from recipes.glyph.train.runs import TEXT
from sanakit.errors import ConfigError, DataError, SanakitError
from sanakit.train.checkpoint import checkpoints, read_manifest
from sanakit.train.recipes.autoencoder_run import VAE
from sanakit.weights.layout import CONFIG
from sanakit.weights.resolve import INDEX

Execute = Callable[..., Ended]
TRAININGS = ("lm", "autoencoder", "decoder", "diffusion")
FITTED = 0.9
"""Share of a training's minutes that its steps are fitted to; the rest is for its start and end."""
HERE = "recipes.glyph"
LEAST = 30.0
"""Seconds of training that are worth beginning."""
_RATE = re.compile(r"at ([\d.e+]+) images/s on one rank")


class NoTimeLeft(SanakitError):
    """A training that has to end in its piece would not."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A preset, the folder that it is carried out in, and what it begins with.

    ``inputs`` may hold ``drawings``, of an earlier build, and archives of packages.
    """

    preset: Preset
    out: Path
    inputs: Path | None
    execute: Execute
    report: Callable[[str], object] = print
    until: float | None = None
    """When the piece ends, on the monotonic clock; None: it does not."""

    @property
    def data(self) -> Path:
        """The folder of the data set."""
        return self.out / "data"

    @property
    def model(self) -> Path:
        """The folder of the exported model."""
        return self.out / "model"

    @property
    def sheet(self) -> Path:
        """The contact sheet."""
        return self.out / "contact-sheet.png"

    def run(self, name: str) -> Path:
        """The folder of a training."""
        return self.out / "runs" / name

    def measure(self, name: str) -> Path:
        """The folder of an evaluation."""
        return self.out / "evaluation" / name

    def training(self, name: str) -> Training:
        """What the preset says of a training."""
        found: Training = getattr(self.preset, name)
        return found


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One of the steps; ``pictures`` says how many it has dealt with, None if that says nothing."""

    name: str
    needs: tuple[str, ...]
    is_done: Callable[[Work], bool]
    commands: Callable[[Work], Iterable[Command]]
    pictures: Callable[[Work], int | None] = lambda work: None


def required(work: Work) -> set[str]:
    """The stages that are still to be done, and those whose results they read."""
    found: set[str] = set()

    def ask(name: str) -> None:
        stage = STAGES[name]
        if name not in found:
            found.add(name)
            if not stage.is_done(work):
                for need in stage.needs:
                    ask(need)

    for goal in GOALS:
        if not STAGES[goal].is_done(work):
            ask(goal)
    return found


def images_seen(run: Path) -> int:
    """How far a training is; 0 if it has saved nothing."""
    found = checkpoints(run)
    return int(read_manifest(found[-1])["images_seen"]) if found else 0


# Data.


def _data_done(work: Work) -> bool:
    store = store_folder(work.data, work.preset.data.size) / STORE
    return (work.data / SUMMARY).is_file() and store.is_file()


def _data(work: Work) -> Iterable[Command]:
    data = work.preset.data
    command = ["build", "--out", str(work.data), "--size", str(data.size)]
    command += ["--workers", str(data.workers)]
    for row in data.without:
        command += ["--without", row]
    drawings = None if work.inputs is None else work.inputs / "drawings"
    if data.made_up:
        command += ["--from", str(write_made_up(work.out / "made-up"))]
    elif drawings is not None and drawings.is_dir():
        if data.limit is not None:
            raise ConfigError(
                f"limit={data.limit} of drawings that are there already",
                hint="leave it out: --set data.limit=null",
            )
        command += ["--from", str(drawings)]
    else:
        command += [] if work.inputs is None else ["--packages", str(work.inputs)]
        command += [] if data.limit is None else ["--limit", str(data.limit)]
    yield Command(module=HERE, arguments=command)


def _data_pictures(work: Work) -> int | None:
    if not (work.data / SUMMARY).is_file():
        return None
    return int(json.loads((work.data / SUMMARY).read_text(encoding="utf-8"))["pictures"])


def _tokenizer_done(work: Work) -> bool:
    text = work.data / TEXT
    rows = (text / "rows.npy").is_file() and (text / "held.npy").is_file()
    return (text / "tokenizer" / "tokenizer.json").is_file() and (rows or _trained("lm")(work))


def _tokenizer(work: Work) -> Iterable[Command]:
    command = ["tokenizer", "--data", str(work.data)]
    if not work.preset.tokenizer.dictionary:
        command.append("--no-dictionary")
    elif work.inputs is not None:
        command += ["--packages", str(work.inputs)]
    yield Command(module=HERE, arguments=command)


# Trainings.


def _trained(name: str) -> Callable[[Work], bool]:
    def is_done(work: Work) -> bool:
        run = work.run(name)
        seen = images_seen(run)
        if not seen or not (run / "loop.json").is_file():
            return False
        total = json.loads((run / "loop.json").read_text(encoding="utf-8"))["total_images"]
        whole = name not in ("autoencoder", "decoder") or (run / VAE / CONFIG).is_file()
        return seen >= total and whole

    return is_done


def _training(
    name: str, *words: str, own: Callable[[Work], list[str]]
) -> Callable[[Work], Iterable[Command]]:
    def commands(work: Work) -> Iterable[Command]:
        training, run = work.training(name), work.run(name)
        device = ["--set", f"device={work.preset.whole.device}"]
        start = [*words, "--data", str(work.data), "--out", str(run)]
        if checkpoints(run):
            # All else stands in the run's own file.
            told = [*start, "--resume", *device]
        else:
            settings = [p for pair in training.settings for p in ("--set", pair)]
            told = [*start, *own(work), *settings, *device]
            told += ["--set", f"total_images={_length(work, name, told)}"]
        yield Command(module=HERE, arguments=told, ranks=training.ranks)

    return commands


def _length(work: Work, name: str, told: list[str]) -> int:
    """The images of a training: those of the preset, or as many as its minutes are enough for.

    Raises:
        DataError: no rate could be measured. NoTimeLeft: too little is left of the piece.
    """
    training = work.training(name)
    if not training.minutes:
        return training.images
    dry = [*told, "--dry-run", "--set", f"total_images={training.images}"]
    ended = work.execute(Command(module=HERE, arguments=dry), listen=True)
    match = _RATE.search(ended.said)
    if ended.code or match is None:
        raise DataError(f"{name}: its rate could not be measured: {ended.said.strip()[-300:]}")
    rate, seconds = float(match[1]) * training.ranks, 60 * training.minutes
    if training.in_one_piece and work.until is not None:
        seconds = min(seconds, work.until - time.monotonic() - _beside(work, name))
        if seconds < LEAST:
            raise NoTimeLeft(
                f"{name} has to end in the piece that it begins in: not begun for the "
                f"{max(0, seconds):.0f} s that are left"
            )
    fitting = int(FITTED * seconds * rate)
    work.report(f"{name}: {rate:.3g} a second; in {seconds:.0f} s {fitting:,} images")
    return max(1, min(training.images, fitting))


def _beside(work: Work, name: str) -> float:
    """Seconds that a piece needs beside a training: for its latents, and for what comes of it."""
    diffusion = work.preset.diffusion
    bank = diffusion.samples / diffusion.bank_rate if name == "diffusion" else 0.0
    return bank + work.preset.ending.seconds


def _sized(work: Work) -> list[str]:
    return ["--size", str(work.preset.data.size)]


def _decoder_own(work: Work) -> list[str]:
    return [*_sized(work), "--phase", "decoder", "--from", str(work.run("autoencoder"))]


def _diffusion_own(work: Work) -> list[str]:
    diffusion = work.preset.diffusion
    return [
        *_sized(work),
        *("--autoencoder", str(work.run("decoder")), "--lm", str(work.run("lm"))),
        *("--layers", str(diffusion.layers), "--samples", str(diffusion.samples)),
        "--tune-text" if diffusion.tune_text else "--freeze-text",
    ]


# What comes of it.


def _export(work: Work) -> Iterable[Command]:
    told = ["export", "--data", str(work.data), "--out", str(work.model)]
    told += ["--autoencoder", str(work.run("decoder")), "--diffusion", str(work.run("diffusion"))]
    told += ["--storage", work.preset.ending.storage]
    yield Command(module=HERE, arguments=told)


def _sheet(work: Work) -> Iterable[Command]:
    ending = work.preset.ending
    told = ["--model", str(work.model), "--prompts", str(ROOT / ending.prompts)]
    told += ["--steps", str(ending.steps), "--out", str(work.sheet)]
    yield Command(module="benchmarks.sheet", arguments=told)


def _measures(work: Work) -> dict[str, list[str]]:
    ending = work.preset.ending
    common = ["--data", str(work.data), "--size", str(work.preset.data.size)]
    common += ["--cache", str(work.measure("cache"))]
    found = {}
    if ending.autoencoder:
        counted = ["--count", str(ending.autoencoder), "--no-lpips", "--no-rfd"]
        found["autoencoder"] = [*common, *counted]
    if ending.generation:
        found["generation"] = [*common, "--count", str(ending.generation)]
    return found


def _evaluation_done(work: Work) -> bool:
    return all((work.measure(name) / "evaluation.json").is_file() for name in _measures(work))


def _evaluation(work: Work) -> Iterable[Command]:
    for name, told in _measures(work).items():
        place = ["--out", str(work.measure(name))]
        yield Command(module=HERE, arguments=["eval", name, str(work.model), *told, *place])


def _training_stage(
    name: str, *words: str, needs: tuple[str, ...], own: Callable[[Work], list[str]]
) -> Stage:
    return Stage(
        name=name,
        needs=needs,
        is_done=_trained(name),
        commands=_training(name, *words, own=own),
        pictures=lambda work: images_seen(work.run(name)),
    )


STAGES = {
    stage.name: stage
    for stage in (
        Stage(name="data", needs=(), is_done=_data_done, commands=_data, pictures=_data_pictures),
        Stage(name="tokenizer", needs=("data",), is_done=_tokenizer_done, commands=_tokenizer),
        _training_stage("lm", "lm", needs=("tokenizer",), own=lambda work: []),
        _training_stage("autoencoder", "autoencoder", needs=("data",), own=_sized),
        # Before the transformer: its encoder is the same, and a carry need not hold both.
        _training_stage("decoder", "autoencoder", needs=("data", "autoencoder"), own=_decoder_own),
        _training_stage(
            "diffusion",
            "diffusion",
            needs=("data", "tokenizer", "lm", "decoder"),
            own=_diffusion_own,
        ),
        Stage(
            name="export",
            needs=("tokenizer", "decoder", "diffusion"),
            is_done=lambda work: (work.model / INDEX).is_file(),
            commands=_export,
        ),
        Stage(
            name="sheet",
            needs=("export",),
            is_done=lambda work: work.sheet.is_file(),
            commands=_sheet,
        ),
        Stage(
            name="evaluation",
            needs=("data", "export"),
            is_done=_evaluation_done,
            commands=_evaluation,
        ),
    )
}
GOALS = ("export", "sheet", "evaluation")
