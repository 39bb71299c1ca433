"""The `sanakit` command. Nothing here or in what it imports at the top may load torch."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from sanakit import __version__
from sanakit.cli import (
    batch,
    bench,
    convert,
    data,
    doctor,
    drawing,
    edit,
    evaluate,
    generate,
    keys,
    models,
    prune,
    quantize,
    serve,
    train,
)
from sanakit.cli.errors import FriendlyGroup
from sanakit.cli.terminal import open_streams, say, tell_warnings

app = typer.Typer(
    name="sanakit",
    cls=FriendlyGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _tell_version(asked: bool) -> None:
    if asked:
        say(f"sanakit {__version__}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_tell_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Draw pictures from words with SANA models, and train them."""


app.command("generate")(generate.generate)
app.command("edit")(edit.edit)
app.command("batch")(batch.batch)
app.command("decode")(generate.decode)
app.command("info")(generate.info)
app.command("again")(generate.again)
app.command("convert")(convert.convert)
app.command("quantize")(quantize.quantize)
app.command("prune")(prune.prune)
app.command("serve")(serve.serve)
app.command("doctor")(doctor.doctor)
app.command("bench")(bench.bench)
app.add_typer(data.app, name="data")
app.add_typer(train.app, name="train")
app.add_typer(evaluate.app, name="eval")
app.add_typer(models.app, name="models")
app.add_typer(keys.app, name="keys")


def main() -> None:
    """Entry point of the console script."""
    open_streams()
    tell_warnings()
    # Read when torch is loaded. Threads that wait then leave the core to others: spinning beside a
    # busy process, each step waits for threads that have no core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    drawing.own_process = True
    app()


if __name__ == "__main__":
    main()
