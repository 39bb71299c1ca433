"""`sanakit train show` and `plot`: how a run does, in words and in curves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sanakit.cli.errors import friendly_errors

Run = Annotated[Path, typer.Argument(help="Folder of a run: --out of the training command.")]


def show(run: Run) -> None:
    """Tell how far a run is, its losses, its checkpoints and whether they are whole."""
    with friendly_errors():
        from sanakit.train.runs.summary import view_run

        for line in view_run(run.expanduser()).lines():
            typer.echo(line)


def plot(
    run: Run,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="SVG to write. Default: RUN/curves.svg.")
    ] = None,
    log_x: Annotated[bool, typer.Option("--log-x", help="Images seen in powers of ten.")] = False,
) -> None:
    """Draw the curves of a run's log as one SVG."""
    with friendly_errors():
        from sanakit.errors import ConfigError, DataError
        from sanakit.files import write_atomically
        from sanakit.train.runs.curves import curves
        from sanakit.train.runs.log import LOG, read_log

        run = run.expanduser()
        target = out or run / "curves.svg"
        if target.suffix.lower() != ".svg":
            raise ConfigError(f"--out {target}: curves are drawn as SVG", hint="name it *.svg")
        if not (run / LOG).is_file():
            raise DataError(f"{run} holds no {LOG}", hint="name the folder of a run")
        drawn = curves(read_log(run), title=run.resolve().name, log_x=log_x)
        write_atomically(target, drawn.encode())
        typer.echo(f"{target}")
