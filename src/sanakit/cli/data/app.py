"""The verbs of `sanakit data`, in the order in which a set goes through them."""

from __future__ import annotations

import typer

from sanakit.cli.data import build, caption, encode, scan, score, show, stats

app = typer.Typer(
    help="Make training sets of pictures: from a folder to shards, with a report.",
    no_args_is_help=True,
)
app.command("build")(build.build)
app.command("scan")(scan.scan)
app.command("caption")(caption.caption)
app.command("score")(score.score)
app.command("encode")(encode.encode)
app.command("stats")(stats.stats)
app.command("show")(show.show)


@app.callback()
def _group() -> None:
    """Make training sets of pictures: from a folder to shards, with a report."""
