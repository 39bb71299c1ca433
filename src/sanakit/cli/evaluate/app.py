"""The commands of `sanakit eval`."""

from __future__ import annotations

import typer

from sanakit.cli.evaluate.judge import train_judge
from sanakit.cli.evaluate.retrieval import retrieval

app = typer.Typer(
    help="Measure an autoencoder or a model: figures with intervals, as JSON and Markdown.",
    no_args_is_help=True,
)
app.command("train-judge")(train_judge)
app.command("retrieval")(retrieval)
