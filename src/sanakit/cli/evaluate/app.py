"""The commands of `sanakit eval`."""

from __future__ import annotations

import typer

from sanakit.cli.evaluate import autoencoder, standard

app = typer.Typer(
    help="Measure an autoencoder or a model: figures with intervals, as JSON and Markdown.",
    no_args_is_help=True,
)
app.command("autoencoder")(autoencoder.autoencoder)
app.command("standard")(standard.standard)
