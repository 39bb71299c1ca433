"""A linear layer with low-rank changes of its weight: to be weighed, merged and taken off."""

from __future__ import annotations

from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STRENGTH: ContextVar[float] = ContextVar("lora_strength", default=1.0)
"""Multiplies all adapters in what runs in this context, one call of a thread; 0: plain layers."""


class LoraLinear(nn.Linear):
    """Stands for a plain layer and shares its parameters, so that ``state_dict`` stays the same.

    Each adapter adds ``scale * up @ down`` to the weight, ``down`` being ``rank in`` and ``up``
    ``out rank``; without a merge the weight itself is never touched.
    """

    def __init__(self, plain: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.weight, self.bias = plain.weight, plain.bias
        self.training = plain.training
        self.scales: dict[str, float] = {}
        """By adapter: alpha / rank."""
        self.weights: dict[str, float] = {}
        """By adapter: what the user makes of it, 1 at first."""
        self.unmerged: Tensor | None = None
        """The weight as it was before a merge."""

    def add(
        self, name: str, down: Tensor, up: Tensor, scale: float, *, trained: bool = False
    ) -> None:
        """Take an adapter on, in the weight's dtype and place.

        One that is to be ``trained`` is parameters instead of buffers, and fp32: steps are small.
        """
        for kind, matrix in (("down", down), ("up", up)):
            dtype = torch.float32 if trained else self.weight.dtype
            own = matrix.detach().to(device=self.weight.device, dtype=dtype)
            if trained:
                self.register_parameter(f"{name}:{kind}", nn.Parameter(own))
            else:
                self.register_buffer(f"{name}:{kind}", own, persistent=False)
        self.scales[name], self.weights[name] = scale, 1.0

    def weigh(self, weights: dict[str, float]) -> None:
        """Give adapters another weight than one."""
        self.weights.update(weights)

    def plain(self) -> nn.Linear:
        """Give the plain layer back, with the parameters as they are now."""
        layer = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        layer.weight, layer.bias = self.weight, self.bias
        return layer.train(self.training)

    def merge(self, strength: float) -> None:
        """Add all adapters to the weight, summed in fp32; the weight as it was is kept aside."""
        if self.unmerged is not None:
            return
        self.unmerged = self.weight.data
        total = self.unmerged.to(torch.promote_types(self.unmerged.dtype, torch.float32))
        for name, scale in self.scales.items():
            down, up = self._matrices(name)
            total = total + strength * self.weights[name] * scale * (
                up.to(total.dtype) @ down.to(total.dtype)
            )
        self.weight.data = total.to(self.unmerged.dtype)

    def unmerge(self) -> None:
        """Undo :meth:`merge`, to the bit."""
        if self.unmerged is not None:
            self.weight.data = self.unmerged.to(self.weight.device)
            self.unmerged = None

    def forward(self, x: Tensor) -> Tensor:
        """Transform ``... in`` to ``... out``."""
        y = F.linear(x, self.weight, self.bias)
        strength = STRENGTH.get()
        if self.unmerged is not None or strength == 0:
            return y
        for name, scale in self.scales.items():
            down, up = self._matrices(name)
            y = y + strength * self.weights[name] * scale * F.linear(F.linear(x, down), up)
        return y

    def _matrices(self, name: str) -> tuple[Tensor, Tensor]:
        return getattr(self, f"{name}:down"), getattr(self, f"{name}:up")
