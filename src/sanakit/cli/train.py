"""`sanakit train`: one command a stage, in the order that they depend on each other."""

from __future__ import annotations

import typer

from sanakit.cli.train_autoencoder import autoencoder
from sanakit.cli.train_diffusion import diffusion, export
from sanakit.cli.train_show import plot, show

app = typer.Typer(
    help="Train an autoencoder or a diffusion transformer; watch and export.",
    no_args_is_help=True,
)
for _command in (autoencoder, diffusion, export, show, plot):
    app.command()(_command)
