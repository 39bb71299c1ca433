"""What our optimizers share: one update a parameter, and states that load as they were saved."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sanakit.errors import WeightsError
from sanakit.train.optimizers.sharding import Update, local, row_groups, run_updates

IN_CACHE = 262_144
"""Values of a matrix that a CPU works on at a time, so that intermediates stay in its cache."""

State = dict[str, Tensor]


class ExactOptimizer(Optimizer):
    """An optimizer whose states are tensors, in fp32 or fewer bits whatever their weight's dtype.

    torch casts states to the dtype of their parameter when it loads them; here they are copied as
    they were saved, or refused.
    """

    @abstractmethod
    def new_state(self, parameter: Tensor, group: dict[str, Any]) -> State:
        """The state before the first step, sharded as the parameter is."""

    @abstractmethod
    def update(self, parameter: Tensor, state: State, group: dict[str, Any]) -> Update:
        """The step of one parameter that has a gradient."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step every parameter that has a gradient; ``closure`` gives the loss, if any."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        run_updates(self._updates())
        return loss

    def _updates(self) -> Iterator[Update]:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state.update(self.new_state(parameter, group))
                yield self.update(parameter, state, group)

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over groups and states, bit for bit; all of them or, where one does not fit, none.

        Raises:
            WeightsError: if a state is not one of this optimizer for a parameter of that shape.
        """
        saved, states = state_dict["state"], {}
        owners = [parameter for group in self.param_groups for parameter in group["params"]]
        numbers = [(n, group) for group in state_dict["param_groups"] for n in group["params"]]
        for parameter, (number, group) in zip(owners, numbers, strict=True):
            if saved.get(number):
                fresh = self.new_state(parameter, group)
                self._check(number, parameter, fresh, saved[number])
                states[parameter] = {
                    name: slot.copy_(saved[number][name]) for name, slot in fresh.items()
                }
        super().load_state_dict({**state_dict, "state": {}})
        self.state.update(states)

    def _check(self, number: int, parameter: Tensor, fresh: State, saved: State) -> None:
        wanted = {name: (tuple(slot.shape), slot.dtype) for name, slot in fresh.items()}
        found = {name: (tuple(slot.shape), slot.dtype) for name, slot in saved.items()}
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                raise WeightsError(
                    f"the saved state of parameter {number}, shape {tuple(parameter.shape)}, does "
                    f"not fit {type(self).__name__}: {name} is {found.get(name, 'missing')}, "
                    f"should be {wanted.get(name, 'absent')}",
                    hint="resume with the optimizer and the model that the run was begun with",
                )


def update_of(parameter: Tensor, sums: Any) -> Update:
    """Say where the rows of an update lie."""
    return Update(sums=sums, groups=row_groups(parameter), numel=local(parameter).numel())


def row_slices(matrix: Tensor) -> list[slice]:
    """Cut a matrix into bands of rows that fit a CPU's cache; elsewhere into one."""
    rows, width = matrix.shape
    if matrix.device.type != "cpu":
        return [slice(0, rows)]
    band = max(1, IN_CACHE // max(1, width))
    return [slice(start, min(rows, start + band)) for start in range(0, rows, band)]
