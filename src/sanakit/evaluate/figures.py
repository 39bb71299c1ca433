"""What an evaluation found: figures with confidence intervals, as JSON and as a Markdown table."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sanakit.errors import ConfigError
from sanakit.files import write_atomically

RESAMPLES = 1000
LEVEL = 0.95
JSON_FILE = "evaluation.json"
TABLE_FILE = "evaluation.md"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number; ``low`` and ``high`` bound it with 95 % confidence where that was asked for."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    count: int
    """Samples that it is of."""
    unit: str = ""
    better: Literal["higher", "lower", ""] = ""
    """Empty for floors, ceilings and counts."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Figures of one family, and everything needed to get them again."""

    family: str
    model: str
    data: str
    settings: Mapping[str, Any]
    figures: Sequence[Figure]
    details: Mapping[str, Any] = field(default_factory=dict)
    """Per prompt, per style: for the JSON file alone."""

    def table(self) -> str:
        """A Markdown table, a line for each figure."""
        lines = ["| figure | value | 95 % interval | samples |", "| --- | --- | --- | --- |"]
        for figure in self.figures:
            unit = f" {figure.unit}" if figure.unit else ""
            interval = ""
            if figure.low is not None and figure.high is not None:
                interval = f"{figure.low:.4g} to {figure.high:.4g}"
            lines.append(
                f"| {figure.name} | {figure.value:.4g}{unit} | {interval} | {figure.count:,} |"
            )
        return "\n".join(lines) + "\n"

    def to_json(self) -> str:
        """All of it, as in `evaluation.json`."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def save(self, folder: Path) -> None:
        """Write `evaluation.json` and `evaluation.md` into a folder, each whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        settings = "\n".join(f"- {name}: {value}" for name, value in self.settings.items())
        head = f"# {self.family}\n\n- model: {self.model}\n- data: {self.data}\n{settings}\n\n"
        texts = {
            JSON_FILE: self.to_json(),
            TABLE_FILE: head + self.table(),
        }
        for name, text in texts.items():
            write_atomically(folder / name, text.encode())


def bootstrap(
    samples: npt.ArrayLike,
    statistic: Callable[[npt.NDArray[Any]], float] = np.mean,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """The 95 % percentile interval of a statistic over rows of ``samples``, drawn with replacement.

    Source: Efron and Tibshirani 1993, chapter 13.

    Raises:
        ConfigError: there are no samples.
    """
    rows = np.asarray(samples)
    if not len(rows):
        raise ConfigError("no samples to draw from", hint="evaluate at least one")
    rng = np.random.default_rng(seed)
    found = [statistic(rows[rng.integers(len(rows), size=len(rows))]) for _ in range(resamples)]
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def mean_figure(
    name: str,
    samples: npt.ArrayLike,
    statistic: Callable[[npt.NDArray[Any]], float] = np.mean,
    *,
    unit: str = "",
    better: Literal["higher", "lower", ""] = "",
) -> Figure:
    """The mean over samples, or another statistic of them, with its interval."""
    rows = np.asarray(samples)
    low, high = bootstrap(rows, statistic)
    value, count = float(statistic(rows)), len(rows)
    return Figure(name=name, value=value, low=low, high=high, count=count, unit=unit, better=better)
