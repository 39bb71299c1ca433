"""Where the time of a step goes: data, text, autoencoder, model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

NAMES = ("data", "text", "autoencoder", "model")


class Timers:
    """Adds up seconds by name; a name inside another takes its time out of the outer one."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(NAMES, 0.0)
        self._open: list[tuple[str, float]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the block's time under ``name``, one of `NAMES`."""
        self._switch(name)
        try:
            yield
        finally:
            self._switch(None)

    def shares(self) -> dict[str, float]:
        """Each name's part of the time since the last call, as ``time_NAME``; then from 0 again."""
        total = sum(self.seconds.values())
        shares = {f"time_{name}": value / total for name, value in self.seconds.items() if total}
        self.seconds = dict.fromkeys(NAMES, 0.0)
        return shares

    def _switch(self, name: str | None) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.monotonic()
        if self._open:
            outer, since = self._open[-1]
            self.seconds[outer] += now - since
        if name is None:
            self._open.pop()
        else:
            self._open.append((name, now))
        if self._open:
            self._open[-1] = (self._open[-1][0], now)
