"""Where a parameter's rows lie, and sums over the ranks that hold them.

Optimizers here work on plain local tensors. Of a parameter that FSDP2 shards by rows they see the
rank's own rows, and ask for the few sums that run over all rows.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from sanakit.errors import ConfigError

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
