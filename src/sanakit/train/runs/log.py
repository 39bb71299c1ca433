"""Where the numbers of a run go: `log.jsonl`, TensorBoard and, where it is installed, W&B."""

from __future__ import annotations

import importlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy.typing as npt
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event

from sanakit.untrusted import fits, parse_json, read_file

LOG = "log.jsonl"


class RunLog:
    """Writes lines of numbers; on every rank but the first it does nothing.

    A disk that refuses is reported, and the run goes on: what it learned matters more.
    """

    def __init__(self, run: Path, *, first: bool, report: Callable[[str], object]) -> None:
        self.run, self.first, self.report = run, first, report
        self.board: EventsWriter | None = None

    @cached_property
    def wandb(self) -> Any:
        """A W&B run from the first line on, if its user wants one."""
        return _wandb(self.run)

    def line(self, images_seen: int, seconds: float, values: Mapping[str, float]) -> None:
        """Log numbers; one that is not finite is written as null."""
        if not self.first:
            return
        clean = {key: value if math.isfinite(value) else None for key, value in values.items()}
        entry = {"images": images_seen, "seconds": round(seconds, 1), **clean}
        self.report("  ".join(f"{key} {value}" for key, value in entry.items()))
        try:
            with (self.run / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry, allow_nan=False) + "\n")
            scalars = {key: value for key, value in clean.items() if value is not None}
            self._show([summary.scalar(*pair) for pair in scalars.items()], images_seen)
        except OSError as error:
            self.report(f"could not log: {error}")
        if self.wandb is not None:
            self.wandb.log(clean, step=images_seen)

    def picture(self, name: str, pixels: npt.NDArray[Any], images_seen: int) -> None:
        """Log a picture ``H W 3`` uint8."""
        if self.first:
            self._show([summary.image(name, pixels, dataformats="HWC")], images_seen)

    def close(self) -> None:
        """Write what is left."""
        with suppress(OSError):
            if self.board is not None:
                self.board.close()
        self.board = None
        if vars(self).get("wandb") is not None:
            self.wandb.finish()

    def _show(self, summaries: list[Any], images_seen: int) -> None:
        """Write to TensorBoard's files, at once: `SummaryWriter` does it in a thread.

        That thread ends on a full disk, and the run would then wait for its queue.
        """
        board, self.board = self.board, None  # after half a record go on in another file
        if board is None:
            folder = self.run / "tensorboard"
            folder.mkdir(exist_ok=True)
            board = EventsWriter(str(folder / "events"), f".{os.getpid()}.{time.time_ns()}")
        try:
            for one in summaries:
                board.write_event(Event(wall_time=time.time(), step=images_seen, summary=one))
            board.flush()
        except OSError:
            with suppress(OSError):
                board.close()
            raise
        self.board = board


def spoken(seconds: float) -> str:
    """A duration as people say it, in its two largest units."""
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86400
    if minutes < 1:
        return f"{seconds:.0f} s"
    if hours < 1:
        return f"{int(minutes)} min {seconds % 60:.0f} s"
    if days < 1:
        return f"{int(hours)} h {int(minutes) % 60} min"
    return f"{int(days)} d {int(hours) % 24} h"


def read_log(run: Path) -> list[dict[str, Any]]:
    """All whole lines of a run's log; a last one that a kill cut short is left out.

    So is what is no line of a log: it has numbers only, with a place and a time among them.
    """
    lines = []
    for text in read_file(run / LOG).splitlines():
        try:
            line = parse_json(text)
        except ValueError:
            continue
        if not isinstance(line, dict) or not {"images", "seconds"} <= line.keys():
            continue
        placed = fits(line["images"], float) and fits(line["seconds"], float)
        if placed and all(value is None or fits(value, float) for value in line.values()):
            lines.append(line)
    return lines


def _wandb(run: Path) -> Any:
    """A W&B run if the package is there and its user has set it up; nothing is asked."""
    if not os.environ.get("WANDB_API_KEY") and os.environ.get("WANDB_MODE") != "offline":
        return None
    try:
        module = importlib.import_module("wandb")
    except ImportError:
        return None
    return module.init(project="sanakit", dir=str(run), name=run.name, resume="allow")
