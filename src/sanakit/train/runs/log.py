"""Where the numbers of a run go: `log.jsonl`, TensorBoard and, where it is installed, W&B."""

from __future__ import annotations

import importlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy.typing as npt
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter

LOG = "log.jsonl"


class RunLog:
    """Writes lines of numbers; on every rank but the first it does nothing.

    A disk that refuses is reported, and the run goes on: what it learned matters more.
    """

    def __init__(self, run: Path, *, first: bool, report: Callable[[str], object]) -> None:
        self.run, self.first, self.report = run, first, report
        self.board = _Board(run / "tensorboard") if first else None
        self.wandb: Any = _wandb(run) if first else None

    def line(self, images_seen: int, seconds: float, values: Mapping[str, float]) -> None:
        """Log numbers; one that is not finite is written as null."""
        if self.board is None:
            return
        clean = {key: value if math.isfinite(value) else None for key, value in values.items()}
        entry = {"images": images_seen, "seconds": round(seconds, 1), **clean}
        self.report("  ".join(f"{key} {value}" for key, value in entry.items()))
        try:
            with (self.run / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry, allow_nan=False) + "\n")
            scalars = {key: value for key, value in clean.items() if value is not None}
            self.board.add([summary.scalar(*pair) for pair in scalars.items()], images_seen)
        except OSError as error:
            self.report(f"could not log: {error}")
        if self.wandb is not None:
            self.wandb.log(clean, step=images_seen)

    def picture(self, name: str, pixels: npt.NDArray[Any], images_seen: int) -> None:
        """Log a picture ``H W 3`` uint8."""
        if self.board is not None:
            self.board.add([summary.image(name, pixels, dataformats="HWC")], images_seen)

    def close(self) -> None:
        """Write what is left."""
        if self.board is not None:
            self.board.close()
        if self.wandb is not None:
            self.wandb.finish()


class _Board:
    """Event files for TensorBoard, written at once.

    The library's own writer has a thread, which a full disk ends and the run then waits for.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records: Any = None

    def add(self, summaries: list[Any], images_seen: int) -> None:
        now = time.time()
        try:
            if self.records is None:
                self.folder.mkdir(exist_ok=True)
                # TensorBoard reads the files of a folder by name, which must hold "tfevents".
                name = f"events.out.tfevents.{now:017.6f}.{os.getpid()}"
                self.records = RecordWriter(str(self.folder / name))
                self._write(Event(wall_time=now, file_version="brain.Event:2"))
            for one in summaries:
                self._write(Event(wall_time=now, step=images_seen, summary=one))
            self.records.flush()
        except OSError:
            self.close()  # after half a record nothing can be read: go on in another file
            raise

    def close(self) -> None:
        with suppress(OSError):
            if self.records is not None:
                self.records.close()
        self.records = None

    def _write(self, event: Any) -> None:
        self.records.write(event.SerializeToString())


def read_log(run: Path) -> list[dict[str, Any]]:
    """All whole lines of a run's log; a last one that a kill cut short is left out."""
    lines = []
    for text in (run / LOG).read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
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
