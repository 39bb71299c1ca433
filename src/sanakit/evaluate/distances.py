"""Distances without a Gaussian: kernel distance, precision and recall, nearest neighbours.

All compute in float64 and know nothing of pictures; `frechet.py` has the distance of Gaussians.

    KID = E k(a, a') + E k(b, b') - 2 E k(a, b),  k(x, y) = (x.y/d + 1)^3   Binkowski et al. 2018
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from sanakit.errors import ConfigError, NumericsError

Rows = npt.NDArray[np.floating]
"""``n d``: a row for each sample."""
Square = npt.NDArray[np.float64]
_T = TypeVar("_T")
BLOCKS = 20
QUANTILE = 2.093
"""Of Student's t with BLOCKS - 1 degrees of freedom at 97.5 %."""
NEIGHBOURS = 3
_AT_A_TIME = 1024


@dataclass(frozen=True)
class Estimate:
    """A number with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def kernel_distance(features: Rows, reference: Rows) -> Estimate:
    """KID, without bias at any number of samples; of equal distributions it may be below 0.

    The mean over twenty disjoint blocks of both sets, and its interval by their spread.

    Raises:
        ConfigError: fewer than forty samples, or two widths.
    """
    if min(len(features), len(reference)) < 2 * BLOCKS:
        raise ConfigError(
            f"{len(features)} and {len(reference)} samples are too few for KID",
            hint=f"take at least {2 * BLOCKS} of both",
        )
    one, other = feature_rows(features), feature_rows(reference, width=features.shape[1])
    rng = np.random.default_rng(0)
    # Neighbours in a list may be alike; a block has to be a sample of the whole.
    parts = zip(
        np.array_split(rng.permutation(len(one)), BLOCKS),
        np.array_split(rng.permutation(len(other)), BLOCKS),
        strict=True,
    )
    found = np.array([_unbiased(one[a], other[b]) for a, b in parts])
    value, spread = float(found.mean()), QUANTILE * float(found.std(ddof=1)) / math.sqrt(BLOCKS)
    return Estimate(value, value - spread, value + spread)


def inside(
    features: Rows, reference: Rows, *, neighbours: int = NEIGHBOURS
) -> npt.NDArray[np.bool_]:
    """Which of ``features`` lie within the manifold of ``reference``.

    The manifold is all that is as near to one of its samples as its ``neighbours``-th nearest other
    sample. The share of generated pictures in the manifold of real ones is precision; of real ones
    in that of generated ones, recall. It grows with the number of samples: take as many of both.

    Source: Kynkäänniemi et al. 2019, eq. 1 to 3.
    """
    known = feature_rows(reference, width=features.shape[1])
    if len(known) <= neighbours:
        raise ConfigError(
            f"{len(known)} samples, and {neighbours} neighbours of each are asked for"
        )
    # The nearest sample of a sample is itself.
    radii = nearest(known, known, rank=neighbours)[1]

    def covered(squared: Square) -> npt.NDArray[np.bool_]:
        return np.asarray((squared <= np.square(radii)).any(axis=1))

    return np.concatenate(_by_parts(feature_rows(features), known, covered))


def nearest(
    features: Rows, reference: Rows, *, rank: int = 0
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """For each sample the index of, and the Euclidean distance to, the nearest of ``reference``.

    ``rank`` 1 is the second nearest, and so on.
    """
    known = feature_rows(reference, least=rank + 1, width=features.shape[1])

    def ranked(squared: Square) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        index = np.argpartition(squared, rank, axis=1)[:, rank]
        return index, np.sqrt(squared[np.arange(len(squared)), index])

    found = _by_parts(feature_rows(features, least=1), known, ranked)
    return np.concatenate([each[0] for each in found]), np.concatenate([each[1] for each in found])


def _by_parts(features: Rows, known: Rows, of: Callable[[Square], _T]) -> list[_T]:
    """What ``of`` makes of squared distances, some rows at a time."""
    norms = np.square(known).sum(axis=1)
    found = []
    for first in range(0, len(features), _AT_A_TIME):
        some = features[first : first + _AT_A_TIME]
        squared = np.square(some).sum(axis=1)[:, None] + norms - 2 * some @ known.T
        found.append(of(squared.clip(0)))
    return found


def _unbiased(one: Rows, other: Rows) -> float:
    def kernel(x: Rows, y: Rows) -> Square:
        return np.asarray((x @ y.T / x.shape[1] + 1) ** 3)

    def within(x: Rows) -> float:
        values = kernel(x, x)
        return float(values.sum() - np.trace(values)) / (len(x) * (len(x) - 1))

    return within(one) + within(other) - 2 * float(kernel(one, other).mean())


def feature_rows(features: Rows, *, least: int = 2, width: int | None = None) -> Rows:
    """Features in float64, checked.

    Raises:
        ConfigError: another shape, fewer than ``least`` rows, or another ``width``.
        NumericsError: a number that is not finite: it would make distances vanish.
    """
    rows = np.asarray(features, dtype=np.float64)
    if rows.ndim != 2 or len(rows) < least:
        raise ConfigError(f"features of shape {rows.shape}: at least {least} rows are needed")
    if width is not None and rows.shape[1] != width:
        raise ConfigError(f"features of width {rows.shape[1]} against {width}")
    broken = ~np.isfinite(rows).all(axis=1)
    if broken.any():
        raise NumericsError(
            f"{broken.sum()} of {len(rows)} rows of features are not finite, the first is row "
            f"{broken.argmax()}",
            hint="look at that picture, and at the weights of the network of features",
        )
    return rows
