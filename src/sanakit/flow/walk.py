"""A run that is given its velocities one by one, for callers with a loop of their own.

Runs of our own are `flow.solvers.integrate`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sanakit.errors import ConfigError
from sanakit.flow.grids import Leg, NoiseLevel, SigmaGrid
from sanakit.flow.solvers import HISTORY, Past, SolverStep, heun_step
from sanakit.shapes import Latent


class _AskAgain(Exception):
    """A step needs another velocity: at which state."""

    def __init__(self, x: Latent) -> None:
        super().__init__()
        self.x = x


class Walk:
    """A run of a solver that is given its velocities one by one."""

    def __init__(
        self, step: SolverStep, grid: SigmaGrid, device: str | torch.device | None
    ) -> None:
        """Begin at the first level; levels are listed once for each velocity that is asked for."""
        self._step = step
        self._legs = list(grid.legs())
        asked: list[NoiseLevel] = []
        for leg in self._legs:
            asked.append(leg.here)
            if step is heun_step and leg.there.sigma > 0:
                asked.append(leg.there)
        self.timesteps = torch.stack([level.timestep for level in asked]).to(device)
        self.sigmas = torch.stack([*(level.sigma for level in asked), grid.sigmas[-1]]).to(device)
        self._at = 0
        self._past: Past = ()
        self._velocities: list[Tensor] = []
        self._start: Latent | None = None
        self._gave: Latent | None = None

    def step(self, velocity: Tensor, timestep: float | Tensor, sample: Latent) -> Latent:
        """Give the state to ask at next."""
        leg = self._leg(float(timestep))
        if not self._velocities:
            # The state that was given out, in the bits that it had before it was rounded.
            own = self._past and self._gave is not None and torch.equal(sample, self._gave)
            self._start = self._past[-1].x if own else sample.float()
        self._velocities.append(velocity)
        told = iter(self._velocities)

        def tell(x: Latent, level: NoiseLevel) -> Latent:
            known = next(told, None)
            if known is None:
                raise _AskAgain(x)
            return known

        assert self._start is not None
        try:
            stepped = self._step(tell, self._start, leg, self._past)
        except _AskAgain as more:
            self._gave = more.x.to(velocity.dtype)
            return self._gave
        self._past = (*self._past, stepped)[-HISTORY:]
        self._velocities = []
        self._at += 1
        self._gave = stepped.x.to(velocity.dtype)
        return self._gave

    def _leg(self, timestep: float) -> Leg:
        """The step that begins at a timestep: the next one, unless the caller jumps."""
        if self._velocities:
            return self._legs[self._at]
        if self._at < len(self._legs) and float(self._legs[self._at].here.timestep) == timestep:
            return self._legs[self._at]
        for at, leg in enumerate(self._legs):
            if float(leg.here.timestep) == timestep:
                self._at, self._past = at, ()
                return leg
        raise ConfigError(
            f"timestep={timestep} is none of this scheduler's",
            hint="go through scheduler.timesteps, after set_timesteps",
        )
