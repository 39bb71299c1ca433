"""STAND-IN until the branch optim is merged."""

from __future__ import annotations
from collections.abc import Iterator
from contextlib import contextmanager
import torch
from torch import Tensor, nn


class Average:
    def __init__(self, module: nn.Module, *, halflife: int) -> None:
        self.halflife = halflife
        self.tensors = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, images_seen: int, batch_size: int) -> None:
        halflife = min(self.halflife, max(1, images_seen // 10))
        weight = 1 - 0.5 ** (batch_size / halflife)
        now = module.state_dict()
        floats = [k for k, v in self.tensors.items() if v.is_floating_point()]
        torch._foreach_lerp_([self.tensors[k] for k in floats], [now[k] for k in floats], weight)

    @contextmanager
    def swapped_into(self, module: nn.Module) -> Iterator[None]:
        kept = {k: v.clone() for k, v in module.state_dict().items()}
        module.load_state_dict(self.tensors)
        try:
            yield
        finally:
            module.load_state_dict(kept)
