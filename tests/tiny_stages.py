"""Stages for tests of engines, where other processes can import them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sanakit.data.stages import Stage, fingerprint
from sanakit.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Doubling:
    """Writes a number twice; ``broken`` is a bad unit, ``elsewhere`` where a worker sees it."""

    at: Path
    broken: str = ""
    elsewhere: Path | None = None
    device: str = "cpu"

    @property
    def folder(self) -> Path:
        """Where the driver looks."""
        return self.at

    def made_from(self, unit: str) -> str:
        """The unit is all there is."""
        return fingerprint(unit)

    def open(self) -> None:
        """Move to where a worker without the shared storage would write."""
        if self.elsewhere is not None:
            self.elsewhere.mkdir(exist_ok=True)
            object.__setattr__(self, "at", self.elsewhere)

    def process(self, unit: str, staging: Path) -> dict[str, Any]:
        """Write."""
        if unit == self.broken:
            raise DataError(f"unit {unit} is broken", hint="mend it")
        (staging / f"{unit}.txt").write_text(str(2 * int(unit)))
        return {"value": int(unit)}


@dataclass(frozen=True, kw_only=True)
class Joined:
    """Several stages as one, so that a worker starts once for all: unit ``NAME.UNIT``."""

    folder: Path
    stages: dict[str, Stage]

    def made_from(self, unit: str) -> str:
        """That of the stage itself."""
        name, _, inner = unit.partition(".")
        return self.stages[name].made_from(inner)

    def open(self) -> None:
        """Open them all."""
        for stage in self.stages.values():
            stage.open()

    def process(self, unit: str, staging: Path) -> dict[str, Any]:
        """Let the stage write, then name its files after it."""
        name, _, inner = unit.partition(".")
        stats = self.stages[name].process(inner, staging)
        for path in list(staging.iterdir()):
            path.rename(staging / f"{name}.{path.name}")
        return stats
