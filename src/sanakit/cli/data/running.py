"""What verbs that run networks share: where and how, and the line at the end of a stage."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from sanakit.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sanakit.data.units import Engine, Stage

SetFolder: TypeAlias = Annotated[
    Path, typer.Argument(metavar="SET", help="Folder that `sanakit data scan` made.")
]
Dtype: TypeAlias = Annotated[
    str | None,
    typer.Option(help="float32 or bfloat16. Default: bfloat16 on a GPU, float32 elsewhere."),
]
Device: TypeAlias = Annotated[
    str | None, typer.Option(help="cpu, cuda or mps. Default: cuda where there is one.")
]
Threads: TypeAlias = Annotated[
    int, typer.Option(help="CPU threads of a process; another number changes the last bits.")
]
EngineName: TypeAlias = Annotated[str, typer.Option("--engine", help="local or ray.")]
Workers: TypeAlias = Annotated[int, typer.Option(help="Processes, each with its own models.")]
BatchSize: TypeAlias = Annotated[int, typer.Option(help="How many at a time.")]


def chosen(
    dtype: str | None, device: str | None, *, batch_size: int, threads: int
) -> tuple[str, str]:
    """Dtype and device, the usual ones where none was named.

    Raises:
        ConfigError: a dtype that does not exist, or a number below 1.
    """
    import torch

    from sanakit.data.captions.vision_models import DTYPES

    for name, value in (("--batch-size", batch_size), ("--threads", threads)):
        if value < 1:
            raise ConfigError(f"{name} {value} must be at least 1")
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    what = dtype or ("bfloat16" if where.startswith("cuda") else "float32")
    if what not in DTYPES:
        raise ConfigError(f"--dtype {what!r} is unknown", hint=f"one of {', '.join(DTYPES)}")
    return what, where


def run(stage: Stage, units: Sequence[str], engine: Engine) -> Counter[str]:
    """Run a stage with progress on the terminal, and give the sums of its statistics."""
    from sanakit.data.units import run_stage

    marks = run_stage(stage, units, engine=engine, report=typer.echo)
    total: Counter[str] = Counter()
    for mark in marks.values():
        total.update({name: v for name, v in mark.stats.items() if isinstance(v, int)})
    return total
