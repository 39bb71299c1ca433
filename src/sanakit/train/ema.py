"""The moving average of a run's weights: what is evaluated and exported.

It is a table of named tensors, those of ``module.state_dict()``; where FSDP2 shards them, each rank
averages its own rows and no message is sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sanakit.errors import ConfigError, WeightsError

SHORT_START = 10
"""The average never remembers more than a tenth of the run: not its random start."""


class EMA:
    """Exponential moving average over images: an old weight counts half after ``halflife`` images.

    Floating-point tensors are averaged in fp32 at least; all others, counters for example, are
    those of the last update. Call :meth:`update` after the optimizer's step.

    Raises:
        ConfigError: a halflife below 1.
    """

    def __init__(self, tensors: Mapping[str, Tensor], *, halflife: int) -> None:
        if halflife < 1:
            raise ConfigError(f"average_halflife={halflife} must be at least 1")
        self.halflife = halflife
        self.tensors = {name: _own_copy(tensor) for name, tensor in tensors.items()}

    def weight(self, images_seen: int, batch_size: int) -> float:
        """The newest weights' share in the average, after a batch that ended at ``images_seen``."""
        halflife = min(self.halflife, max(1, images_seen // SHORT_START))
        return 1 - 0.5 ** (batch_size / halflife)

    @torch.no_grad()
    def update(self, tensors: Mapping[str, Tensor], *, images_seen: int, batch_size: int) -> None:
        """Take in the weights after a step; ``images_seen`` counts its batch.

        Raises:
            WeightsError: if the tensors' names are not those of the average.
        """
        _same_names(self.tensors, tensors)
        weight = self.weight(images_seen, batch_size)
        floats = [name for name, value in self.tensors.items() if value.is_floating_point()]
        old = [_local(self.tensors[name]) for name in floats]
        new = [_local(tensors[name]).to(o.dtype) for name, o in zip(floats, old, strict=True)]
        if old:
            torch._foreach_lerp_(old, new, weight)
        for name in self.tensors.keys() - set(floats):
            _local(self.tensors[name]).copy_(_local(tensors[name]))

    @contextmanager
    def swapped_in(self, module: nn.Module) -> Iterator[None]:
        """Let a module have the average's weights inside the block, and its own bits afterwards.

        The weights are restored however the block is left. Costs one copy of them.

        Raises:
            WeightsError: if the module's tensors are not those of the average.
        """
        own = module.state_dict()
        _same_names(self.tensors, own)
        kept = {name: tensor.detach().clone() for name, tensor in own.items()}
        try:
            _write(module, self.tensors)
            yield
        finally:
            _write(module, kept)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def _own_copy(tensor: Tensor) -> Tensor:
    """A copy in fp32 at least: in 16 bits the small steps of an average round to nothing."""
    copy = tensor.detach().clone()
    return copy.float() if copy.is_floating_point() and copy.itemsize < 4 else copy


@torch.no_grad()
def _write(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    # Asking for the state also makes FSDP drop weights that it gathered before they changed.
    for name, tensor in module.state_dict().items():
        _local(tensor).copy_(_local(tensors[name]))


def _same_names(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    if ours.keys() != theirs.keys():
        odd = sorted(ours.keys() ^ theirs.keys())
        raise WeightsError(
            f"the average and the weights differ in {len(odd)} names, {odd[0]} for one",
            hint="an average belongs to the model it was made of",
        )
