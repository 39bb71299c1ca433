"""The group `sanakit data` and its verbs."""

from __future__ import annotations

import typer

from sanakit.cli.data import build, scan

app = typer.Typer(help="Build training sets.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Build training sets."""


app.command("build")(build.build)
app.command("scan")(scan.scan)
