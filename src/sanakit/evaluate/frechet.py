"""Fréchet distance: how far apart the Gaussians of two sets of features lie.

All compute in float64 and know nothing of pictures. The distance is a squared one, as is usual.

    FD = |mean_a - mean_b|^2 + tr A + tr B - 2 tr (A^1/2 B A^1/2)^1/2    Heusel et al. 2017, eq. 6
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sanakit.errors import ConfigError
from sanakit.evaluate.distances import Estimate, Rows, Square, feature_rows

NORMAL = 1.96
RESAMPLES = 50
_LEAST = 1e-12


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
        rows = feature_rows(features)
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
        rows = feature_rows(features, width=len(self.mean))
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
    one, other = feature_rows(features), feature_rows(reference, width=features.shape[1])
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


def _root(covariance: Square) -> Square:
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors * np.sqrt(values.clip(0)) @ vectors.T)


def _draws(count: int, resamples: int, seed: int) -> list[npt.NDArray[np.float64]]:
    """How often each of ``count`` samples is drawn, with replacement, in each resample."""
    rng = np.random.default_rng(seed)
    chosen = [rng.integers(count, size=count) for _ in range(resamples)]
    return [np.bincount(each, minlength=count).astype(np.float64) for each in chosen]
