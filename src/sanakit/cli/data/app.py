"""The group `sanakit data`."""

from __future__ import annotations

import typer

from sanakit.cli.data import build, caption, encode, score

app = typer.Typer(help="Build training sets.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Build training sets."""


app.command("build")(build.build)
app.command("caption")(caption.caption)
app.command("score")(score.score)
app.command("encode")(encode.encode)
