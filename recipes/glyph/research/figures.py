"""Comparisons of finished runs: differences over the same held samples, with intervals."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from recipes.glyph.research.short_run import RESULTS, read
from sanakit.errors import ConfigError
from sanakit.evaluate.figures import bootstrap


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much more one run's mean error is than another's, on the same samples."""

    value: float
    low: float
    high: float
    relative: float
    """To the other's mean."""

    @property
    def told_apart(self) -> bool:
        """Whether 0 lies outside the interval: of the samples, not of another training."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.value:+.4f} ({self.low:+.4f} to {self.high:+.4f}), {self.relative:+.1%}"


def paired(one: npt.ArrayLike, other: npt.ArrayLike) -> Difference:
    """The mean of ``one`` minus that of ``other``, sample by sample, with a 95 % interval.

    Raises:
        ConfigError: not as many samples of both.
    """
    first, second = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ConfigError(f"{first.shape} against {second.shape} samples: pairs are needed")
    apart = first - second
    low, high = bootstrap(apart)
    value = float(apart.mean())
    return Difference(value=value, low=low, high=high, relative=value / float(second.mean()))


def held(
    name: str, *, third: int | None = None, key: str = "held", results: Path = RESULTS
) -> npt.NDArray[np.float64]:
    """Errors of a run's held samples: over all levels, or in one third of the path."""
    errors = np.array(read(name, results)[key], dtype=np.float64)
    return errors.mean(axis=1) if third is None else errors[:, third]
