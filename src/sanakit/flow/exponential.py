"""How much each estimate of x0 counts over a step in lambda; docs/maths/solvers.md (S9)-(S11).

All numbers are Python floats, in double precision: they are few, and the state keeps its own dtype.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

SERIES_BELOW = 1.0  # the recurrence loses digits in h where h is small, the series is exact there
SERIES_TERMS = 20


def half_log_snr(sigma: float) -> float:
    """Give lambda: plus infinity at sigma 0, minus infinity at sigma 1."""
    if sigma == 0:
        return math.inf
    return math.log((1 - sigma) / sigma) if sigma < 1 else -math.inf


def moments(h: float, count: int) -> list[float]:
    """Give the weights of ``1, s, s^2, ...`` over a step of width ``h``, infinity included. (S9).

    ``s`` runs from 0 where the step begins to 1 where it ends.
    """
    if h < SERIES_BELOW:
        return [_series(h, power) for power in range(count)]
    found = [-math.expm1(-h)]
    for power in range(1, count):
        found.append(1 - power / h * found[-1])
    return found


def node_weights(h: float, nodes: Sequence[float]) -> list[float]:
    """Give the weights of values at ``nodes``, which a polynomial through all of them joins. (S10).

    Nodes are places ``s`` on the scale of `moments`, finite and different.
    """
    powers = np.vander(np.asarray(nodes, dtype=np.float64), increasing=True).T
    return np.linalg.solve(powers, np.asarray(moments(h, len(nodes)))).tolist()


def _series(h: float, power: int) -> float:
    term, total = h / (power + 1), 0.0
    for n in range(SERIES_TERMS):
        total += term
        term *= -h / (power + n + 2)
    return total
