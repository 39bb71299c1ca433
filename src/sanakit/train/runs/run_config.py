"""What a run was started with, in `run.json`: why resuming needs no argument but the folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sanakit.errors import ConfigError, DataError
from sanakit.files import write_json
from sanakit.train.checkpoint import checkpoints

RUN = "run.json"
FORMAT = 1
MAY_CHANGE = frozenset(
    {
        *("total_images", "peak_lr", "schedule", "warmup_images", "decay_share", "lr_rule"),
        *("weight_decay", "grad_clip", "accumulation", "compute_dtype", "gradient_checkpointing"),
        *("compile_blocks", "strategy", "device", "log_every", "evaluate_every", "pictures_every"),
        *("save_minutes", "async_save", "hang_minutes", "most_skipped"),
        *("workers", "prompts", "held", "data", "tune_text", "samples"),
    }
)
"""Arguments and settings that a resumed run may be given anew; others would make it another run."""


@dataclass(frozen=True, kw_only=True)
class RunFile:
    """The command's verb, its arguments by name and its ``key=value`` settings; JSON values."""

    verb: str
    arguments: Mapping[str, Any]
    settings: Sequence[str] = field(default=())

    def resumed_with(self, arguments: Mapping[str, Any], settings: Sequence[str]) -> RunFile:
        """The same run with what was typed now; None and nothing are "as before".

        Raises:
            ConfigError: for a change that would make it another run.
        """
        given = {key: value for key, value in arguments.items() if value not in (None, [], ())}
        for key, value in given.items():
            if key not in MAY_CHANGE and value != self.arguments.get(key):
                _refuse(key.replace("_", "-"), "--", self.arguments.get(key), value)
        before = dict(pair.partition("=")[::2] for pair in self.settings)
        now = dict(pair.partition("=")[::2] for pair in settings)
        for key, text in now.items():
            if key not in MAY_CHANGE and _value(text) != _value(before.get(key)):
                _refuse(key, "--set ", before.get(key, "its default"), text)
        merged = [f"{key}={text}" for key, text in {**before, **now}.items()]
        return RunFile(verb=self.verb, arguments={**self.arguments, **given}, settings=merged)


def as_settings(*configs: Any) -> list[str]:
    """All fields of dataclasses as ``key=value``: a default that changes later changes no run."""
    return [
        f"{key}={json.dumps(value)}" for config in configs for key, value in asdict(config).items()
    ]


def _value(text: str | None) -> Any:
    try:
        return json.loads(text or "null")
    except ValueError:
        return text


def _refuse(name: str, sign: str, before: Any, now: Any) -> None:
    raise ConfigError(
        f"{sign}{name} was {before} when the run began, and is {now}",
        hint="leave it out to go on, or start anew with another --out; "
        f"these may change: {', '.join(sorted(MAY_CHANGE))}",
    )


def is_run(folder: str | Path) -> bool:
    """Whether a folder is that of a run whose arguments are known."""
    return (Path(folder).expanduser() / RUN).is_file()


def read_run(folder: str | Path) -> RunFile:
    """What a run was started with.

    Raises:
        DataError: the file is missing, damaged or of another format.
    """
    path = Path(folder).expanduser() / RUN
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value["format"] != FORMAT:
            raise KeyError(f"format {value['format']}, and this is {FORMAT}")
        return RunFile(
            verb=str(value["verb"]),
            arguments=dict(value["arguments"]),
            settings=[str(pair) for pair in value["settings"]],
        )
    except FileNotFoundError as error:
        raise DataError(
            f"{folder} is no folder of a run: {RUN} is missing",
            hint="name the folder that was --out of `sanakit train`",
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error})") from error


def write_run(folder: Path, run: RunFile, *, resume: bool) -> None:
    """Note what a run was started with, or goes on with.

    Raises:
        ConfigError: the folder holds a run, and it is not to be resumed. DataError: the disk.
    """
    if not resume and checkpoints(folder):
        raise ConfigError(
            f"{folder} already holds a run", hint="pass --resume to go on, or another folder"
        )
    value = {
        "format": FORMAT,
        "verb": run.verb,
        "arguments": dict(run.arguments),
        "settings": list(run.settings),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be made ({error})") from error
    write_json(folder / RUN, value)


def newest_run(root: Path, verb: str) -> Path:
    """The run of a verb that was started or resumed last.

    Raises:
        DataError: there is none.
    """
    found = sorted(root.glob(f"*/{RUN}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in found:
        if read_run(path.parent).verb == verb:
            return path.parent
    raise DataError(
        f"{root} holds no run of `sanakit train {verb}` to resume", hint="name one: --out RUN"
    )
