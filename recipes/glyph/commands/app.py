"""All commands of `python -m recipes.glyph` but the preset runner, which reads its own words."""

from __future__ import annotations

import typer

from recipes.glyph.commands import evaluate, train
from sanakit.cli.errors import FriendlyGroup

app = typer.Typer(
    name="python -m recipes.glyph",
    cls=FriendlyGroup,
    help="Train the embedded model from nothing, a command a stage; a PRESET's name runs them all.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (train.build, train.tokenizer, train.samples, train.lm, train.start):
    app.command()(_command)
app.add_typer(evaluate.app, name="eval")

VERBS = ("build", "tokenizer", "samples", "lm", "start", "eval")
