"""What a server was started with, as far as its routes ask."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """``ui`` serves the page; ``max_body`` is what a request may carry, in bytes."""

    model: str
    ui: bool = True
    host: str = "127.0.0.1"
    port: int = 8000
