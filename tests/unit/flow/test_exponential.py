"""Weights of estimates over a step in lambda, against quadrature of what they stand for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sanakit.flow.solvers import half_log_snr, moments, node_weights

WIDTHS = (1e-4, 0.03, 0.999, 1.0, 3.0, 20.0)


def integral(h: float, values: np.ndarray) -> float:
    """Integrate h * exp(-(1 - s) * h) * values over s in [0, 1], at the points of `places`."""
    return float((QUADRATURE * h * np.exp(-(1 - PLACES) * h) * values).sum())


PLACES, QUADRATURE = np.polynomial.legendre.leggauss(120)
PLACES, QUADRATURE = (PLACES + 1) / 2, QUADRATURE / 2


@pytest.mark.parametrize("h", WIDTHS)
def test_moments_are_the_integrals_they_stand_for(h: float) -> None:
    expected = [integral(h, PLACES**power) for power in range(4)]
    np.testing.assert_allclose(moments(h, 4), expected, rtol=1e-10)


@pytest.mark.parametrize("h", WIDTHS)
def test_node_weights_integrate_the_polynomial_through_the_nodes(h: float) -> None:
    nodes = [0.0, -0.7, -1.9, 1.0]
    values = [0.3, -1.2, 2.0, 0.8]
    through = np.polynomial.Polynomial.fit(nodes, values, 3)
    found = np.dot(node_weights(h, nodes), values)
    np.testing.assert_allclose(found, integral(h, through(PLACES)), rtol=1e-8)


def test_an_infinite_step_counts_only_its_end() -> None:
    assert moments(math.inf, 4) == [1, 1, 1, 1]
    assert node_weights(math.inf, [0.0]) == [1]


def test_lambda_is_infinite_at_both_ends_and_odd_about_the_middle() -> None:
    assert half_log_snr(0.0) == math.inf
    assert half_log_snr(1.0) == -math.inf
    assert half_log_snr(0.2) == pytest.approx(math.log(4), abs=1e-15)
    assert half_log_snr(0.2) == pytest.approx(-half_log_snr(0.8), abs=1e-15)
