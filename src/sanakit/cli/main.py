"""The `sanakit` command. Nothing here or in what it imports at the top may load torch."""

from __future__ import annotations

import typer

from sanakit.cli import convert, data, evaluate, generate, models, train
from sanakit.cli.errors import FriendlyGroup
from sanakit.cli.terminal import open_streams, tell_warnings

app = typer.Typer(
    name="sanakit",
    cls=FriendlyGroup,
    help="Draw pictures from words with SANA models, and train them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("generate")(generate.generate)
app.command("decode")(generate.decode)
app.command("info")(generate.info)
app.command("again")(generate.again)
app.command("convert")(convert.convert)
app.add_typer(data.app, name="data")
app.add_typer(train.app, name="train")
app.add_typer(evaluate.app, name="eval")
app.add_typer(models.app, name="models")


def main() -> None:
    """Entry point of the console script."""
    open_streams()
    tell_warnings()
    app()


if __name__ == "__main__":
    main()
