"""How far apart two sets of features lie: Fréchet distance, kernel distance, precision and recall.

All compute in float64 and know nothing of pictures. Both distances are squared ones, as is usual.

    FD  = |mean_a - mean_b|^2 + tr A + tr B - 2 tr (A^1/2 B A^1/2)^1/2    Heusel et al. 2017, eq. 6
    KID = E k(a, a') + E k(b, b') - 2 E k(a, b),  k(x, y) = (x.y/d + 1)^3   Binkowski et al. 2018
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from sanakit.errors import ConfigError

Rows = npt.NDArray[np.floating]
"""``n d``: a row for each sample."""
Square = npt.NDArray[np.float64]
_T = TypeVar("_T")
BLOCKS = 20
QUANTILE = 2.093
"""Of Student's t with BLOCKS - 1 degrees of freedom at 97.5 %."""
NORMAL = 1.96
RESAMPLES = 50
NEIGHBOURS = 3
_AT_A_TIME = 1024
_LEAST = 1e-12


@dataclass(frozen=True)
class Estimate:
    """A number with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ResampledDistance:
    """A Fréchet distance of ``count`` samples with the distances of their bootstrap samples.

    Resampling repeats samples, which raises the distance itself: only its spread is used.
    """

    value: float
    found: npt.NDArray[np.float64]
    count: int

    @property
    def estimate(self) -> Estimate:
        """The distance, and 1.96 standard deviations to both sides."""
        spread = NORMAL * float(self.found.std())
        return Estimate(self.value, max(0.0, self.value - spread), self.value + spread)

    def over(self, yardstick: ResampledDistance) -> Estimate:
        """How many times as far it is as a yardstick.

        Sample i of both belongs together, such as a generated and a real picture of one caption.

        Raises:
            ConfigError: the sets have two sizes.
        """
        if self.count != yardstick.count:
            raise ConfigError(
                f"{self.count} samples against {yardstick.count}: the distance is biased by "
                "their number",
                hint="take as many of both",
            )
        value, *found = (
            math.log(max(one, _LEAST) / max(other, _LEAST))
            for one, other in zip(
                (self.value, *self.found), (yardstick.value, *yardstick.found), strict=True
            )
        )
        spread = NORMAL * float(np.std(found))
        return Estimate(math.exp(value), math.exp(value - spread), math.exp(value + spread))


class Reference:
    """The Gaussian of a set of features, with all that distances to it share.

    Raises:
        ConfigError: fewer than two samples.
    """

    def __init__(self, features: Rows) -> None:
        rows = _rows(features)
        self.count = len(rows)
        self.mean = rows.mean(axis=0)
        centred = rows - self.mean
        self.root = _root(centred.T @ centred / (self.count - 1))
        self.trace = float(np.square(self.root).sum())

    def distance(self, features: Rows) -> float:
        """The Fréchet distance to the Gaussian of other features; 0 is equal.

        It is biased: fewer samples give larger distances, also of equal distributions. Only
        distances at equal numbers of samples compare.
        """
        return self._from(self._projected(features), np.ones(len(features)))

    def resampled(
        self, features: Rows, *, resamples: int = RESAMPLES, seed: int = 0
    ) -> ResampledDistance:
        """The distance, and what it is of bootstrap samples; the reference stays as it is.

        Sets of one size are resampled alike: sample i of each comes as often.
        """
        projected, count = self._projected(features), len(features)
        found = [self._from(projected, chosen) for chosen in _draws(count, resamples, seed)]
        return ResampledDistance(self._from(projected, np.ones(count)), np.array(found), count)

    def _projected(self, features: Rows) -> tuple[Rows, Rows]:
        """The samples, and the samples times the root of the reference's covariance."""
        rows = _rows(features, width=len(self.mean))
        return rows, rows @ self.root

    def _from(self, projected: tuple[Rows, Rows], weights: npt.NDArray[np.float64]) -> float:
        """The distance of samples that count ``weights`` times each."""
        chosen = weights > 0
        rows, rooted = (each[chosen] for each in projected)
        repeated = np.sqrt(weights[chosen])[:, None]
        count = weights.sum()
        mean = weights[chosen] @ rows / count
        centred = repeated * (rows - mean)
        trace = float(np.square(centred).sum()) / (count - 1)
        # With centred samples X and Y = X A^1/2, A^1/2 B A^1/2 is Y'Y / (n - 1): symmetric, and
        # of the same eigenvalues, but for zeros, as YY' / (n - 1). The smaller one is taken.
        product = repeated * (rooted - mean @ self.root)
        narrow = product.T @ product if len(product) > product.shape[1] else product @ product.T
        roots = np.sqrt(np.linalg.eigvalsh(narrow / (count - 1)).clip(0)).sum()
        apart = float(np.square(mean - self.mean).sum())
        return max(0.0, apart + self.trace + trace - 2 * float(roots))


def frechet_distance(features: Rows, reference: Rows) -> float:
    """The Fréchet distance of the Gaussians of two sets; see `Reference.distance`."""
    return Reference(reference).distance(features)


def paired_distance(
    features: Rows, reference: Rows, *, resamples: int = RESAMPLES, seed: int = 0
) -> ResampledDistance:
    """The Fréchet distance of two sets whose rows belong together, such as copies of pictures.

    Pairs are resampled whole, so that what copies share widens no interval.
    """
    one, other = _rows(features), _rows(reference, width=features.shape[1])
    if len(one) != len(other):
        raise ConfigError(f"{len(one)} samples against {len(other)}: pairs are needed")
    count = len(one)

    def of(weights: npt.NDArray[np.float64]) -> float:
        chosen = weights > 0
        repeated = np.sqrt(weights[chosen])[:, None]
        apart, factors, trace = np.zeros(one.shape[1]), [], 0.0
        for rows, sign in ((one[chosen], 1), (other[chosen], -1)):
            mean = weights[chosen] @ rows / count
            centred = repeated * (rows - mean)
            apart += sign * mean
            trace += float(np.square(centred).sum())
            wide = len(centred) <= centred.shape[1]
            factors.append(centred if wide else np.asarray(np.linalg.qr(centred, mode="r")))
        # tr (A^1/2 B A^1/2)^1/2 is the sum of the singular values of X Y' / (n - 1), X and Y the
        # centred samples; the triangles of many samples have the same ones.
        roots = np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum()
        return max(0.0, float(np.square(apart).sum() + (trace - 2 * roots) / (count - 1)))

    draws = _draws(count, resamples, seed)
    return ResampledDistance(of(np.ones(count)), np.array([of(each) for each in draws]), count)


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
    one, other = _rows(features), _rows(reference, width=features.shape[1])
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
    known = _rows(reference, width=features.shape[1])
    if len(known) <= neighbours:
        raise ConfigError(
            f"{len(known)} samples, and {neighbours} neighbours of each are asked for"
        )
    # The nearest sample of a sample is itself.
    radii = nearest(known, known, rank=neighbours)[1]

    def covered(squared: Square) -> npt.NDArray[np.bool_]:
        return np.asarray((squared <= np.square(radii)).any(axis=1))

    return np.concatenate(_by_parts(_rows(features), known, covered))


def nearest(
    features: Rows, reference: Rows, *, rank: int = 0
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """For each sample the index of, and the Euclidean distance to, the nearest of ``reference``.

    ``rank`` 1 is the second nearest, and so on.
    """
    known = _rows(reference, least=rank + 1, width=features.shape[1])

    def ranked(squared: Square) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        index = np.argpartition(squared, rank, axis=1)[:, rank]
        return index, np.sqrt(squared[np.arange(len(squared)), index])

    found = _by_parts(_rows(features, least=1), known, ranked)
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


def _root(covariance: Square) -> Square:
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors * np.sqrt(values.clip(0)) @ vectors.T)


def _draws(count: int, resamples: int, seed: int) -> list[npt.NDArray[np.float64]]:
    """How often each of ``count`` samples is drawn, with replacement, in each resample."""
    rng = np.random.default_rng(seed)
    chosen = [rng.integers(count, size=count) for _ in range(resamples)]
    return [np.bincount(each, minlength=count).astype(np.float64) for each in chosen]


def _rows(features: Rows, *, least: int = 2, width: int | None = None) -> Rows:
    rows = np.asarray(features, dtype=np.float64)
    if rows.ndim != 2 or len(rows) < least:
        raise ConfigError(f"features of shape {rows.shape}: at least {least} rows are needed")
    if width is not None and rows.shape[1] != width:
        raise ConfigError(f"features of width {rows.shape[1]} against {width}")
    return rows
