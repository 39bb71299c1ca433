"""`sanakit data stats`: the report of a set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sanakit.cli.errors import friendly_errors
from sanakit.errors import ConfigError


def stats(
    folder: Annotated[Path, typer.Argument(metavar="SET", help="Folder of a set.")],
    pictures: Annotated[int, typer.Option(help="How many pictures the report shows.")] = 24,
) -> None:
    """Write report/index.html and report/contact-sheet.png of a set, and print the main numbers."""
    with friendly_errors():
        from sanakit.data.report.facts import gather
        from sanakit.data.report.page import write_report
        from sanakit.data.training_set import TrainingSet

        if pictures < 0:
            raise ConfigError(f"--pictures {pictures} is below 0", hint="0 shows none")
        training_set = TrainingSet.open(folder)
        facts = gather(training_set, choose=0)
        page = write_report(training_set, choose=pictures)
        typer.echo(f"{facts.samples} pictures, {facts.captions} captions, {facts.refused} left out")
        for one in facts.left_out:
            typer.echo(f"  {one.count:>6}  {one.reason}")
        if facts.index is None:
            typer.echo(f"no shards yet: sanakit data build {folder}")
        typer.echo(f"report: {page}")
