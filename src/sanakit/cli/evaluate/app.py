"""The commands of `sanakit eval`."""

from __future__ import annotations

import typer

from sanakit.cli.evaluate import (
    autoencoder,
    composition,
    generation,
    judge,
    memorisation,
    retrieval,
    standard,
)

app = typer.Typer(
    help="Measure an autoencoder or a model: figures with intervals, as JSON and Markdown.",
    no_args_is_help=True,
)
app.command("autoencoder")(autoencoder.autoencoder)
app.command("composition")(composition.composition)
app.command("generation")(generation.generation)
app.command("memorisation")(memorisation.memorisation)
app.command("train-judge")(judge.train_judge)
app.command("retrieval")(retrieval.retrieval)
app.command("standard")(standard.standard)
