"""`--dry-run` of training commands: print what a run would cost, and write nothing."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from sanakit.errors import ConfigError

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print what the run would cost; write nothing.")
]
Measure = Annotated[
    bool, typer.Option("--measure/--no-measure", help="With --dry-run: time three steps.")
]


def check_dry(dry_run: bool, measure: bool) -> None:
    """Refuse options of ``--dry-run`` that have no meaning here."""
    if not measure and not dry_run:
        raise ConfigError("--no-measure is of --dry-run", hint="give both, or neither")
    if dry_run and "WORLD_SIZE" in os.environ:
        raise ConfigError(
            "--dry-run measures one rank", hint="run it without torchrun: it plans many from one"
        )


def print_plan(
    run: Any, config: Any, *, measure: bool, frozen: Any = (), shards: Any = None
) -> None:
    """Plan a recipe and its loop's settings."""
    from sanakit.train.distributed.ranks import join_ranks
    from sanakit.train.runs.plan import plan_of

    device = join_ranks(config.device).device
    plan = plan_of(run, config, device=device, frozen=frozen, shards=shards, measure=measure)
    for line in plan.lines():
        typer.echo(line)
