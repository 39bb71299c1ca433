"""`python -m recipes.glyph PRESET`: train the embedded model from nothing, in pieces if need be."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from recipes.glyph.carry import CARRY, pack, unpack
from recipes.glyph.cost import machine, plan, read_ledger, write_ledger
from recipes.glyph.presets import known_presets, read_preset
from recipes.glyph.running import execute
from recipes.glyph.stages import STAGES, Execute, NoTimeLeft, Work, required
from sanakit.errors import ConfigError, DataError, Interrupted, SanakitError, did_you_mean

MORE = 75
"""Exit code where all went well and something is left to be done."""


def main(
    arguments: Sequence[str] | None = None, *, run: Execute = execute, began: float | None = None
) -> int:
    """Do what is asked; gives the exit code. ``began`` is when the piece did, monotonic clock."""
    options = _parser().parse_args(arguments)
    try:
        return _go(options, run, time.monotonic() if began is None else began)
    except SanakitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m recipes.glyph", description=__doc__)
    parser.add_argument("preset", help=f"{', '.join(known_presets())}, or an .ini file")
    parser.add_argument("--out", type=Path, help="folder of the run; runs/speedrun-PRESET")
    parser.add_argument(
        "--inputs", type=Path, help="folder with drawings/ or packages; else they are fetched"
    )
    parser.add_argument("--minutes", type=float, help="end this piece in time, and pack a carry")
    parser.add_argument("--until", metavar="STAGE", help="end the piece after this stage")
    parser.add_argument("--carry", type=Path, help="what an earlier piece packed")
    parser.add_argument("--set", dest="changes", metavar="SECTION.KEY=VALUE", action="append")
    parser.add_argument("--plan", action="store_true", help="print what it would cost; do nothing")
    return parser


def _go(options: argparse.Namespace, run: Execute, began: float) -> int:
    preset = read_preset(options.preset, options.changes or [])
    if options.until is not None and options.until not in STAGES:
        raise ConfigError(
            f"no stage {options.until!r}", hint=did_you_mean(options.until, list(STAGES))
        )
    if options.minutes is not None and 60 * options.minutes <= preset.whole.reserve:
        raise ConfigError(
            f"--minutes {options.minutes:g} are no more than the {preset.whole.reserve:g} s that "
            "a piece keeps to save in",
            hint="give more, or a smaller --set whole.reserve=5",
        )
    if options.inputs is not None and not options.inputs.is_dir():
        raise ConfigError(f"--inputs {options.inputs} is no folder", hint="leave it out to fetch")
    out = options.out or Path("runs") / f"speedrun-{preset.name}"
    if options.plan:
        print(f"{preset.name}: {preset.whole.about}\n\n{plan(preset, read_ledger(out, preset))}")
        return 0
    out.mkdir(parents=True, exist_ok=True)
    inputs = None if options.inputs is None else options.inputs.resolve()
    until = None
    if options.minutes is not None:
        until = began + 60 * options.minutes - preset.whole.reserve
    work = Work(
        preset=preset, out=out.resolve(), inputs=inputs, execute=run, report=_say, until=until
    )
    if options.carry is not None and not unpack(work, options.carry):
        _say(f"{out} is as far as {options.carry}: nothing is taken from there")
    _piece(work, options.until)
    left = [name for name in STAGES if name in required(work) and not STAGES[name].is_done(work)]
    if options.minutes is not None or options.until is not None:
        folder = pack(work)
        for path in sorted(folder.iterdir()):
            _say(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    if left:
        return _tell_what_is_left(options, out, left)
    cost = read_ledger(work.out, preset).table()
    (work.out / "cost.md").write_text(f"{cost}\n", encoding="utf-8")
    _say(
        f"\n{cost}\n\n{out / 'model'}: draw with `sanakit generate PROMPT --model {out / 'model'}`"
    )
    _say(f"{out / 'contact-sheet.png'}")
    return 0


def _piece(work: Work, last: str | None) -> None:
    """Do stage after stage, as far as the time reaches.

    Raises:
        DataError: a command failed. Interrupted: somebody stopped it.
    """
    ledger = read_ledger(work.out, work.preset)
    machines = list(dict.fromkeys([*ledger.machines, machine()]))
    ledger = replace(ledger, pieces=ledger.pieces + 1, machines=machines)
    write_ledger(work.out, ledger)
    for name, stage in STAGES.items():
        if name in required(work) and not stage.is_done(work):
            began, stopped = time.monotonic(), False
            if work.until is not None and began >= work.until:
                return
            _say(f"== {name}")
            try:
                for command in stage.commands(work):
                    _say(f"   {command}")
                    ended = work.execute(command, until=work.until)
                    if ended.interrupted:
                        raise Interrupted(f"stopped in {name}", hint="the same command goes on")
                    stopped = stopped or ended.stopped
                    if stopped:
                        break
                    if ended.code:
                        raise DataError(
                            f"{name} ended with exit code {ended.code}",
                            hint="mend what it says above; the same command goes on",
                        )
            except NoTimeLeft as error:
                _say(error)
                return
            finally:
                done = stage.is_done(work)
                seen = stage.pictures(work) if done or stopped else None
                ledger = ledger.spent(name, time.monotonic() - began, seen or None)
                write_ledger(work.out, ledger)
            if stopped:
                return
            if not done:
                raise DataError(f"{name} ended and left nothing", hint="look at what it says above")
        if name == last:
            return


def _tell_what_is_left(options: argparse.Namespace, out: Path, left: list[str]) -> int:
    words = ["python -m recipes.glyph", options.preset, "--out", str(out)]
    for change in options.changes or []:
        words += ["--set", f"'{change}'"]
    if options.inputs is not None:
        words += ["--inputs", str(options.inputs)]
    if options.minutes is not None:
        words += ["--minutes", f"{options.minutes:g}"]
    _say(f"still to be done: {', '.join(left)}; here: {' '.join(words)}")
    _say(f"on another machine: the same with --carry FOLDER, a copy of {out / CARRY}")
    return MORE


def _say(line: object) -> None:
    print(line, flush=True)
