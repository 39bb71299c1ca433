"""What a training command is told, kept in `run.json` beside its run: how `--resume` knows it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sanakit.errors import ConfigError

if TYPE_CHECKING:
    from sanakit.train.runs.run_config import RunFile

PATHS = ("data", "start", "held", "autoencoder", "text_encoder", "lm")


def as_told(
    verb: str, arguments: Mapping[str, Any], settings: Sequence[str], run: Path, *, resume: bool
) -> RunFile:
    """What was typed now; of a run that goes on, with what it was started with.

    An argument that is None was not typed.

    Raises:
        ConfigError: the folder's run is of another verb, or the change would make it another run.
        DataError: its file is damaged.
    """
    from sanakit.train.runs.run_config import RunFile, is_run, read_run

    given = {key: _lasting(key, value) for key, value in arguments.items() if value is not None}
    if not resume or not is_run(run):  # runs that are older left nothing behind
        return RunFile(verb=verb, arguments=given, settings=list(settings))
    file = read_run(run)
    if file.verb != verb:
        raise ConfigError(
            f"{run} is a run of `sanakit train {file.verb}`", hint="name another: --out RUN"
        )
    return file.resumed_with(given, settings)


def keep(run: Path, verb: str, arguments: Mapping[str, Any], *configs: Any, resume: bool) -> None:
    """Note arguments, and all fields of the configs as they turned out to be.

    Raises:
        ConfigError: the folder holds a run, and it is not to be resumed. DataError: the disk.
    """
    from sanakit.train.runs.run_config import RunFile, as_settings, write_run

    if speaks():
        file = RunFile(verb=verb, arguments=arguments, settings=as_settings(*configs))
        write_run(run, file, resume=resume)


def speaks() -> bool:
    """Whether this is the process that prints, of those that torchrun started."""
    return int(os.environ.get("RANK", 0)) == 0


def _lasting(key: str, value: Any) -> Any:
    """An argument as it can be read from any folder: paths that are there become absolute."""
    if key not in PATHS or "://" in value:
        return value
    from sanakit.weights.resolve import EMBEDDED

    path = Path(value).expanduser()
    return value if value in EMBEDDED or not path.exists() else str(path.resolve())
