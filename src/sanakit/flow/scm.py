"""One to a few steps by consistency, each with fresh noise (SCM); docs/maths/solvers.md.

A state stands on the arc ``cos(t) * x0 + sin(t) * noise`` (TrigFlow), which is the straight path at
``sigma = sin(t) / (cos(t) + sin(t))``, seen from another distance: the network is told sigma, and
shown the state of the straight path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sanakit.errors import ConfigError
from sanakit.flow.grids import Leg, NoiseLevel, SigmaGrid, check_steps, falling
from sanakit.flow.solvers import Past, Stepped, Velocity
from sanakit.shapes import Latent


class Usual(float):
    """A default that asks for nothing where it has no meaning; a number that is given does."""


MAX_TIME = 1.57080
"""A quarter circle, as published: all but rounding is noise."""
SECOND_TIME: float = Usual(1.3)
"""Where the second of two steps begins, as published."""
# Found by search for the published models, where even times are not what they are sampled at.
TUNED_TIMES = {4: (1.56830, 1.3, 1.1, 0.6)}
SIGMA_DATA = 0.5


def scm_grid(
    num_steps: int, max_time: float = MAX_TIME, second_time: float | None = SECOND_TIME
) -> ArcGrid:
    """Give the published times of so many steps. (S19).

    Two steps begin at ``max_time`` and ``second_time``, four at the tuned times, others at even
    ones; so do all where ``second_time`` is None or ``max_time`` another.

    Raises:
        ConfigError: for no steps, or a second time with a number of steps that has no such thing.
    """
    check_steps(num_steps)
    if second_time is not None and num_steps == 2:
        return arc_grid([max_time, second_time])
    if second_time is not None and not isinstance(second_time, Usual):
        raise ConfigError(
            f"intermediate_timesteps={second_time} with {num_steps} steps",
            hint="it is of two steps; pass timesteps=[...] for others",
        )
    if second_time is not None and max_time == MAX_TIME and num_steps in TUNED_TIMES:
        return arc_grid(TUNED_TIMES[num_steps])
    return _grid_of(torch.linspace(_checked(max_time), 0, num_steps + 1))


def scm_grid_asked(
    num_steps: int | None,
    timesteps: Sequence[float] | None,
    max_timesteps: float | None,
    intermediate_timesteps: float | None,
) -> ArcGrid:
    """Give the grid that published arguments mean: a number of steps, or times of one's own.

    Raises:
        ConfigError: for both or none, or as `scm_grid` and `arc_grid`.
    """
    if timesteps is None:
        if max_timesteps is None or num_steps is None:
            raise ConfigError(
                "neither timesteps nor a number of steps and max_timesteps are given",
                hint=f"max_timesteps={MAX_TIME} is usual",
            )
        return scm_grid(num_steps, max_timesteps, intermediate_timesteps)
    usual = max_timesteps == MAX_TIME, isinstance(intermediate_timesteps, Usual)
    given = {"max_timesteps": max_timesteps, "intermediate_timesteps": intermediate_timesteps}
    for (name, value), unsaid in zip(given.items(), usual, strict=True):
        if value is not None and not unsaid:
            raise ConfigError(f"timesteps and {name}={value}: both given", hint=f"{name}=None")
    grid = arc_grid(timesteps)
    if num_steps not in (None, len(grid.timesteps)):
        raise ConfigError(
            f"timesteps={list(timesteps)} are {len(grid.timesteps)} steps, and {num_steps} asked",
            hint=f"num_inference_steps={len(grid.timesteps)}",
        )
    return grid


def arc_grid(times: Sequence[float]) -> ArcGrid:
    """Give the grid at times of the caller's own, which fall; a closing 0 is added.

    Raises:
        ConfigError: for times that do not fall, or beyond a quarter circle.
    """
    levels = falling(times, MAX_TIME, "timesteps")
    return _grid_of(torch.tensor([*levels.tolist(), 0.0]))


def _checked(max_time: float) -> float:
    if not 0 < max_time <= MAX_TIME:
        raise ConfigError(
            f"max_timesteps={max_time} must be above 0, and at most {MAX_TIME}",
            hint="times are angles on a quarter circle",
        )
    return max_time


class ArcGrid(SigmaGrid):
    """A falling run of times on the arc; its timesteps are angles."""

    def mixed(self, position: int, x0: Latent, noise: Latent) -> Latent:
        """Give the state that the arc from ``x0`` to ``noise`` has at a time of the grid."""
        return on_arc(x0, noise, self.times[position].to(x0))

    def cut(self, strength: float) -> SigmaGrid:
        """Leave out the first ``steps * (1 - strength)`` steps; whole ones, as published.

        Of less than one step nothing is left out as published: a run of few steps then begins with
        pure noise, and forgets the picture. Here its first step begins that far on its way.

        Raises:
            ConfigError: a strength of about nothing, which leaves no step.
        """
        total = len(self.timesteps)
        left_out = total - min(total * strength, total)
        if left_out >= 1 or left_out == 0:
            return self._last(total - int(left_out), strength)
        times = self.times
        return _grid_of(torch.cat([torch.lerp(times[:1], times[1:2], left_out), times[1:]]))

    @property
    def times(self) -> Tensor:
        """All of them, and the closing 0."""
        return torch.cat([self.timesteps, self.timesteps.new_zeros(1)])


def _grid_of(times: Tensor) -> ArcGrid:
    return ArcGrid(sigma_at(times), times[:-1])


def sigma_at(time: Tensor) -> Tensor:
    """Give the level of the straight path that a time is. (S20)."""
    return time.sin() / (time.cos() + time.sin())


def on_arc(x0: Latent, noise: Latent, time: Tensor) -> Latent:
    """Give the state at a time between data and noise of one size."""
    return time.cos() * x0 + time.sin() * noise


def arc_prediction(velocity: Latent, x: Latent, sigma: Tensor) -> Latent:
    """Give how a state moves along the arc; ``x`` and its velocity are of the straight path. (S21).

    ``cos(t) * state - sin(t) * prediction`` is the estimate of x0.
    """
    along = (1 - 2 * sigma) * x + (1 - 2 * sigma + 2 * sigma**2) * velocity
    return along / distance(sigma)


def distance(sigma: Tensor) -> Tensor:
    """Give how far from the origin the straight path is, in states of the arc."""
    return torch.sqrt(sigma**2 + (1 - sigma) ** 2)


def arc_velocity(network: Callable[[Latent, Tensor], Latent], x: Latent, time: Tensor) -> Latent:
    """Give how a state of the arc moves along it, by a network of the straight path. (S21).

    ``network`` is shown that path's state and told its level, of the shape of ``time``.
    """
    sigma = sigma_at(time)
    straight = x * distance(sigma)
    return arc_prediction(network(straight, sigma), straight, sigma)


def scm_step(velocity: Velocity, x: Latent, leg: Leg, past: Past) -> Stepped:
    """Go to the estimate of x0, and back along the arc with the leg's fresh noise. (S22).

    States are those of the arc, data and noise of size one; one evaluation.
    """
    assert leg.fresh is not None, "runs of this solver bring noise"
    sigma, time = leg.here
    there = leg.there.timestep
    straight = x * distance(sigma)
    v = velocity(straight, NoiseLevel(sigma, sigma)).to(x.dtype)
    denoised = time.cos() * x - time.sin() * arc_prediction(v, straight, sigma)
    return Stepped(on_arc(denoised, leg.fresh, there), denoised, x, leg.here)


class ArcWalk:
    """A run that is given its predictions one by one, in the published unit of ``sigma_data``."""

    def __init__(self, grid: ArcGrid, sigma_data: float, device: str | torch.device | None) -> None:
        """Begin at the first time; ``timesteps`` end with 0."""
        self.timesteps = grid.times.to(device)
        self.sigmas = grid.sigmas.to(device)
        self._unit = sigma_data

    def step(
        self, prediction: Tensor, timestep: float | Tensor, x: Latent, noise: Latent
    ) -> tuple[Latent, Latent]:
        """Give the state at the next time, and the estimate of x0.

        Raises:
            ConfigError: a time that is none of the run's.
        """
        asked = float(torch.as_tensor(timestep).flatten()[0])
        near = (self.timesteps[:-1].cpu() - asked).abs()
        at = int(near.argmin())
        if near[at] > 1e-6:
            raise ConfigError(
                f"timestep={asked:g} is none of this scheduler's",
                hint="go through scheduler.timesteps[:-1], after set_timesteps",
            )
        here, there = self.timesteps[at].to(x), self.timesteps[at + 1].to(x)
        denoised = here.cos() * x - here.sin() * prediction
        return on_arc(denoised, self._unit * noise, there), denoised
