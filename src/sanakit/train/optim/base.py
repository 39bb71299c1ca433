"""What our optimizers share: one update a parameter, and states that load as they were saved."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.optim import Optimizer

from sanakit.errors import ConfigError, WeightsError

Summing = Generator[list[Tensor], None, None]
"""An update that pauses where it needs sums over all rows: it yields its own rows' share, and goes
on when the tensors hold the sums of all ranks."""
Groups = tuple[dist.ProcessGroup, ...]

LOCKSTEP = 32 * 2**20
"""Values of a rank whose updates share messages: their intermediates live at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """One parameter's step, not yet run; ``numel`` counts the values of one rank."""

    sums: Summing
    groups: Groups
    numel: int


def local(tensor: Tensor) -> Tensor:
    """The rank's own part, as a plain tensor that shares memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def row_groups(parameter: Tensor) -> Groups:
    """The groups of ranks over which the rows of a parameter are split; none for a whole one.

    Raises:
        ConfigError: if it is split along another dimension than its first.
    """
    if not isinstance(parameter, DTensor):
        return ()
    for placement in parameter.placements:
        if not (isinstance(placement, Replicate) or placement == Shard(0)):
            raise ConfigError(
                f"a parameter of shape {tuple(parameter.shape)} is sharded as {placement}",
                hint="these optimizers take parameters that are whole or sharded by rows, Shard(0)",
            )
    return tuple(
        parameter.device_mesh.get_group(dimension)
        for dimension, placement in enumerate(parameter.placements)
        if isinstance(placement, Shard)
    )


def beside(parameter: Tensor, part: Tensor, *, by_rows: bool) -> Tensor:
    """Let a rank's tensor be what its parameter is: sharded by rows, or the same on all ranks.

    Checkpoints of torch then know how to save it once and to bring it to other numbers of ranks.
    """
    if not isinstance(parameter, DTensor):
        return part
    shape = torch.Size((parameter.shape[0], *part.shape[1:])) if by_rows else part.shape
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        part,
        parameter.device_mesh,
        parameter.placements if by_rows else [Replicate()] * parameter.device_mesh.ndim,
        run_check=False,
        shape=shape,
        stride=stride,
    )


def run_updates(updates: Iterable[Update]) -> None:
    """Run updates to their ends; those that are sharded share their messages.

    All ranks must give the same parameters in the same order, as under FSDP they do.
    """
    waiting: dict[Groups, list[Update]] = {}
    for update in updates:
        if not update.groups:
            for _ in update.sums:
                pass
            continue
        batch = waiting.setdefault(update.groups, [])
        if batch and sum(u.numel for u in batch) + update.numel > LOCKSTEP:
            _in_lockstep(batch, update.groups)
            batch.clear()
        batch.append(update)
    for groups, batch in waiting.items():
        _in_lockstep(batch, groups)


def _in_lockstep(updates: list[Update], groups: Groups) -> None:
    """One message a pause for all of them; the longest has as many pauses as any."""
    running = [update.sums for update in updates]
    while running:
        paused = [(job, sums) for job in running if (sums := next(job, None)) is not None]
        running = [job for job, _ in paused]
        shares = [share for _, sums in paused for share in sums]
        if not shares:
            return
        flat = torch.cat([share.flatten() for share in shares])
        for group in groups:
            dist.all_reduce(flat, group=group)
        parts = flat.split([share.numel() for share in shares])
        for share, part in zip(shares, parts, strict=True):
            share.copy_(part.view_as(share))


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
