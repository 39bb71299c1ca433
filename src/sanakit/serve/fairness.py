"""A bounded queue that serves owners in turns."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """First come first served for each owner, round robin over owners: none waits for a flood."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[T]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[T]:
        """In the order in which they come, if nobody else does."""
        longest = max(map(len, self._waiting.values()), default=0)
        for place in range(longest):
            yield from (line[place] for line in self._waiting.values() if place < len(line))

    def put(self, owner: str, item: T) -> None:
        """Stand at the end of an owner's line."""
        self._waiting.setdefault(owner, deque()).append(item)

    def first(self) -> T | None:
        """Give who is next, and leave it there."""
        return next(iter(self), None)

    def take(self) -> T:
        """Take who is next; its owner is last now."""
        owner, line = self._waiting.popitem(last=False)
        item = line.popleft()
        if line:
            self._waiting[owner] = line
        return item

    def remove(self, owner: str, item: T) -> bool:
        """Take someone out; whether it was there."""
        line = self._waiting.get(owner)
        if line is None or item not in line:
            return False
        line.remove(item)
        if not line:
            del self._waiting[owner]
        return True
