"""`python -m recipes.glyph PRESET`: train the embedded model from nothing."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from recipes.glyph.presets import Preset, known_presets, read_preset
from recipes.glyph.running import execute
from recipes.glyph.stages import STAGES, Execute, Work, required
from sanakit.errors import ConfigError, DataError, Interrupted, SanakitError
from sanakit.files import write_json
from sanakit.train.runs.log import spoken

COST = "cost.json"
FREE = ("ranks", "workers", "about", "device")
"""May be changed in the midst of a run: nothing that is made depends on them."""


def main(arguments: Sequence[str] | None = None, *, run: Execute = execute) -> int:
    """Do what is asked; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m recipes.glyph", description=__doc__)
    parser.add_argument("preset", help=f"{', '.join(known_presets())}, or an .ini file")
    parser.add_argument("--out", type=Path, help="folder of the run; runs/speedrun-PRESET")
    parser.add_argument(
        "--inputs", type=Path, help="folder with drawings/ or packages; else they are fetched"
    )
    parser.add_argument("--set", dest="changes", metavar="SECTION.KEY=VALUE", action="append")
    parser.add_argument("--plan", action="store_true", help="print the commands; do nothing")
    options = parser.parse_args(arguments)
    try:
        _go(options, run)
    except SanakitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _go(options: argparse.Namespace, run: Execute) -> None:
    preset = read_preset(options.preset, options.changes or [])
    if options.inputs is not None and not options.inputs.is_dir():
        raise ConfigError(f"--inputs {options.inputs} is no folder", hint="leave it out to fetch")
    out = (options.out or Path("runs") / f"speedrun-{preset.name}").resolve()
    inputs = None if options.inputs is None else options.inputs.resolve()
    work = Work(preset=preset, out=out, inputs=inputs)
    seconds = _begin(work)
    needed = [name for name in STAGES if name in required(work) and not STAGES[name].is_done(work)]
    if options.plan:
        _say(f"{preset.name}: {preset.whole.about}")
    for name in needed:
        _say(f"== {name}")
        if options.plan and name == "data" and preset.data.made_up:
            continue  # its drawings are made before its command is known
        began = time.monotonic()
        try:
            for command in STAGES[name].commands(work):
                _say(f"   {command}")
                if not options.plan:
                    _check(name, run(command))
        finally:
            if not options.plan:
                seconds[name] = round(seconds.get(name, 0.0) + time.monotonic() - began, 1)
                _write(work, seconds)
        if not options.plan and not STAGES[name].is_done(work):
            raise DataError(f"{name} ended and left nothing", hint="look at what it says above")
    if not options.plan:
        _say("\n" + "\n".join(f"{name:12}{spoken(value)}" for name, value in seconds.items()))
        _say(
            f"{work.sheet}\n{work.model}: draw with `sanakit generate PROMPT --model {work.model}`"
        )


def _check(name: str, ended: Any) -> None:
    if ended.interrupted:
        raise Interrupted(f"stopped in {name}", hint="the same command goes on")
    if ended.code:
        raise DataError(
            f"{name} ended with exit code {ended.code}",
            hint="mend what it says above; the same command goes on",
        )


def _begin(work: Work) -> dict[str, float]:
    """What the stages took so far, of a folder that was begun with these very settings.

    Raises:
        ConfigError: the folder holds the run of another preset. DataError: the file is damaged.
    """
    path = work.out / COST
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        before, seconds = value["preset"], dict(value["seconds"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error})") from error
    for section, values in _settings(work.preset).items():
        if before.get(section) != values:
            raise ConfigError(
                f"{work.out} was begun with [{section}] {before.get(section)}, not {values}",
                hint="give the same preset and --set, or another --out",
            )
    return seconds


def _write(work: Work, seconds: Mapping[str, float]) -> None:
    work.out.mkdir(parents=True, exist_ok=True)
    value = {"preset": _settings(work.preset), "seconds": seconds}
    write_json(work.out / COST, value)


def _settings(preset: Preset) -> dict[str, Any]:
    """All that decides what comes of it; as JSON knows it, lists for tuples."""
    known: dict[str, Any] = json.loads(json.dumps(asdict(preset)))
    return {
        name: {key: value for key, value in part.items() if key not in FREE}
        for name, part in known.items()
        if name not in ("name", "ending")
    }


def _say(line: object) -> None:
    print(line, flush=True)
