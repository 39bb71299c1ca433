"""Threads that compute in turns, a step each."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """One thread runs at a time; after each step the next one in the ring does.

    So requests advance together, and a picture of few steps does not wait for one of many. Each
    computes what it computes alone.
    """

    def __init__(self) -> None:
        self._ring: deque[int] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def taking(self) -> Iterator[None]:
        """Take part within the block."""
        me = threading.get_ident()
        with self._changed:
            self._ring.append(me)
            self._wait(me)
        try:
            yield
        finally:
            with self._changed:
                self._ring.remove(me)
                self._changed.notify_all()

    def hand_over(self) -> None:
        """Let every other one take its step before this goes on."""
        me = threading.get_ident()
        with self._changed:
            if len(self._ring) > 1:
                self._ring.rotate(-1)
                self._changed.notify_all()
                self._wait(me)

    def _wait(self, me: int) -> None:
        while self._ring[0] != me:
            self._changed.wait()
