"""A job: a request on its way to pictures, and all that was told of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Literal

from sanakit.errors import SanakitError
from sanakit.serve.history import Row
from sanakit.serve.requests import FINISHED, DrawRequest, ImageView, JobState

EventKind = Literal["queued", "started", "step", "preview", "image", "done", "failed", "cancelled"]


class QueueFull(SanakitError):
    """The queue takes no more; ``retry_after`` is in seconds."""

    def __init__(self, said: str, retry_after: int) -> None:
        super().__init__(said, hint=f"try again in {retry_after} s")
        self.retry_after = retry_after


class NotTaken(SanakitError):
    """The server is going down, or has no model."""


class NotShown(SanakitError):
    """A picture that the output checker holds back."""


class KeyConflict(SanakitError):
    """An idempotency key was used before for something else."""


class UnknownJob(SanakitError):
    """No job of that name is this owner's."""


@dataclass(frozen=True)
class JobEvent:
    """What happened to a job; numbers rise, and a preview that is out of date is left out."""

    kind: EventKind
    data: dict[str, Any]
    number: int

    def outdated_by(self, kind: EventKind) -> bool:
        """Whether a later one says it better; a preview that was asked for stays."""
        asked_for = self.kind == "preview" and "partial_image_index" in self.data
        return self.kind == kind in ("step", "preview") and not asked_for


@dataclass(eq=False)
class Job:
    """A request on its way to pictures."""

    id: str
    owner: str
    request: DrawRequest
    created: float
    state: JobState = "queued"
    step: int = 0
    steps: int = 0
    images: list[ImageView] = field(default_factory=list)
    error: str | None = None
    code: str | None = None
    finished: float | None = None
    log: list[JobEvent] = field(default_factory=list)
    numbered: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)
    timer: asyncio.TimerHandle | None = None

    @classmethod
    def of_row(cls, row: Row) -> Job:
        """Give a job as the history has it."""
        images = [
            ImageView.of(row["id"], image["place"], image["seed"], image["width"], image["height"])
            for image in row["images"]
        ]
        request = DrawRequest(**row["request"])
        kept = ("id", "owner", "created", "state", "error", "code", "finished")
        return cls(request=request, images=images, **{name: row[name] for name in kept})

    @property
    def seeds(self) -> list[int]:
        """Of its pictures, finished or not."""
        first = self.request.seed or 0
        return [first + place for place in range(self.request.count)]

    @property
    def over(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in FINISHED

    def tell(self, kind: EventKind, **data: Any) -> None:
        """Note what happened, and wake who listens; of steps and previews the newest is kept."""
        self.log[:] = [event for event in self.log if not event.outdated_by(kind)]
        self.numbered += 1
        self.log.append(JobEvent(kind, data, self.numbered))
        news, self.news = self.news, asyncio.Event()
        news.set()

    def end(self, number: int) -> JobEvent:
        """What is told at last, whatever else was."""
        kind: Any = self.state
        data = {"error": self.error, "code": self.code} if self.state == "failed" else {}
        return JobEvent(kind, {"images": [i.model_dump() for i in self.images], **data}, number)
