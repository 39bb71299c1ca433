"""The commands of `sanakit eval`."""

from __future__ import annotations

import typer
from recipes.glyph.commands import composition, generation, memorisation, retrieval, train_judge

from sanakit.cli.evaluate import autoencoder, standard

app = typer.Typer(
    help="Measure an autoencoder or a model: figures with intervals, as JSON and Markdown.",
    no_args_is_help=True,
)
app.command("autoencoder")(autoencoder.autoencoder)
app.command("composition")(composition.composition)
app.command("generation")(generation.generation)
app.command("memorisation")(memorisation.memorisation)
app.command("train-judge")(train_judge.train_judge)
app.command("retrieval")(retrieval.retrieval)
app.command("standard")(standard.standard)
