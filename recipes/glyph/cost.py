"""What a run costs: kept in `cost.json` stage by stage, foretold by a plan, told at the end."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from recipes.glyph.presets import Preset
from recipes.glyph.train.language_model import glyph_lm_config
from sanakit.errors import ConfigError, DataError
from sanakit.files import write_atomically
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.config import AUTOENCODERS, TRANSFORMERS
from sanakit.models.flops import language_model_flops, transformer_flops
from sanakit.train.mfu import counted
from sanakit.train.runs.summary import spoken

COST = "cost.json"
FORMAT = 1
ROW_TOKENS = 96
CAPTION_TOKENS = 15
"""Mean of the captions that training draws, 14.3 measured."""
FREE = ("rate", "seconds", "bank_rate", "workers", "ranks")
"""May be changed in the midst of a run: nothing that is made depends on them."""
FULL = 3.0
"""A training step in forward passes."""
DECODER_ONLY = 2.0
"""Its encoder computes one way, its decoder three; either is about half of the forward pass."""


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """Seconds and pictures by stage, over all pieces; ``preset`` is what the run was begun with."""

    preset: Mapping[str, Any]
    pieces: int = 0
    machines: Sequence[str] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    pictures: Mapping[str, int] = field(default_factory=dict)

    def spent(self, stage: str, seconds: float, pictures: int | None) -> Ledger:
        """The ledger after a stage took so long and has dealt with so many pictures in all."""
        took = {**self.seconds, stage: round(self.seconds.get(stage, 0.0) + seconds, 1)}
        seen = self.pictures if pictures is None else {**self.pictures, stage: pictures}
        return replace(self, seconds=took, pictures=seen)

    def table(self) -> str:
        """What it cost, as Markdown."""
        lines = ["| stage | time | pictures | a second |", "|---|---|---|---|"]
        for stage, seconds in self.seconds.items():
            count = self.pictures.get(stage)
            rate = f"{count / seconds:.3g}" if count and seconds else ""
            shown = f"{count:,}" if count else ""
            lines.append(f"| {stage} | {spoken(seconds)} | {shown} | {rate} |")
        whole = sum(self.seconds.values())
        lines.append(f"| **all** | **{spoken(whole)}** | | |")
        return "\n".join([*lines, "", f"In {self.pieces} pieces on: {'; '.join(self.machines)}."])


def read_ledger(out: Path, preset: Preset) -> Ledger:
    """The ledger of a folder; a new one if there is none.

    Raises:
        ConfigError: the folder holds the run of another preset. DataError: the file is damaged.
    """
    path, settings = out / COST, _settings(preset)
    if not path.is_file():
        return Ledger(preset=settings)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value.pop("format") != FORMAT:
            raise KeyError("format")
        ledger = Ledger(**value)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error})") from error
    for section, values in settings.items():
        if ledger.preset.get(section) != values:
            raise ConfigError(
                f"{out} was begun with [{section}] {ledger.preset.get(section)}, not {values}",
                hint="give the same preset and --set, or another --out",
            )
    return ledger


def write_ledger(out: Path, ledger: Ledger) -> None:
    """Keep it."""
    value = {"format": FORMAT, **asdict(ledger)}
    write_atomically(out / COST, f"{json.dumps(value, indent=2)}\n".encode())


def machine() -> str:
    """This machine in words: its GPU if it has one, its cores, and torch's version."""
    parts = [f"{os.cpu_count()} cores of {platform.machine()}", f"torch {torch.__version__}"]
    if shutil.which("nvidia-smi"):
        told = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
        )
        parts = [*told.stdout.splitlines()[:1], *parts]
    return ", ".join(parts)


def plan(preset: Preset, ledger: Ledger) -> str:
    """What it would cost, as Markdown: at the preset's rates, or those that were measured here."""
    lines = ["| stage | pictures | FLOPs a picture | PFLOPs | a second | time |", "|" + "---|" * 6]
    whole = 0.0

    def row(name: str, count: int, flops: float, seconds: float, rate: str) -> None:
        nonlocal whole
        whole += seconds
        cells = [name, f"{count:,}" if count else "", f"{flops:.3g}" if flops else ""]
        cells += [f"{count * flops / 1e15:.3g}" if flops else "", rate, spoken(seconds)]
        lines.append(f"| {' | '.join(cells)} |")

    row("data", 0, 0, preset.data.seconds, "")
    row("tokenizer", 0, 0, preset.tokenizer.seconds, "")
    for name, flops in training_flops(preset).items():
        training = getattr(preset, name)
        rate, said = training.rate, f"{training.rate:g}, expected"
        if (seconds := ledger.seconds.get(name)) and (seen := ledger.pictures.get(name)):
            rate, said = seen / seconds, f"{seen / seconds:.3g}, measured"
        count = training.images
        if training.minutes:
            count = min(count, int(60 * training.minutes * rate))
        if name == "diffusion":
            row("bank", preset.diffusion.samples, 0, *_bank(preset))
        row(name, count, flops, count / rate, said)
    row("ending", 0, 0, preset.ending.seconds, "")
    lines.append(f"| **all** | | | | | **{spoken(whole)}** |")
    return "\n".join(lines)


def training_flops(preset: Preset) -> dict[str, float]:
    """Operations to train on one picture, or row of text, by training."""
    size, config = preset.data.size, AUTOENCODERS["glyph"]
    side = size // config.spatial_factor
    whole = counted(lambda: Autoencoder(config)(torch.zeros(1, 3, size, size)))
    llm = glyph_lm_config()
    shape = replace(TRANSFORMERS["glyph"], num_layers=preset.diffusion.layers)
    text = language_model_flops(llm, CAPTION_TOKENS)
    drawn = transformer_flops(shape, (side, side), CAPTION_TOKENS)
    return {
        "lm": FULL * language_model_flops(llm, ROW_TOKENS, head=True),
        "autoencoder": FULL * whole * _cut(preset.autoencoder.settings, size),
        "decoder": DECODER_ONLY * whole * _cut(preset.decoder.settings, size),
        "diffusion": FULL * drawn + (FULL if preset.diffusion.tune_text else 1.0) * text,
    }


def _cut(settings: Sequence[str], size: int) -> float:
    """The share of a picture's pixels that an autoencoder learns on at a time."""
    sides = [int(one.removeprefix("side=")) for one in settings if one.startswith("side=")]
    return (sides[-1] / size) ** 2 if sides else 1.0


def _bank(preset: Preset) -> tuple[float, str]:
    rate = preset.diffusion.bank_rate
    return preset.diffusion.samples / rate, f"{rate:g}, expected"


def _settings(preset: Preset) -> dict[str, Any]:
    """All that decides what comes of it; as JSON knows it, lists for tuples."""
    parts = asdict(preset)
    known: dict[str, Any] = json.loads(json.dumps(parts))
    return {
        name: {key: value for key, value in part.items() if key not in FREE}
        for name, part in known.items()
        if name not in ("name", "whole", "ending")
    }
