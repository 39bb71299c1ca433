"""Steps whose gradients are not finite: the loss scale that fp16 needs, and when to give up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from sanakit.errors import ConfigError, NumericsError

ComputeDtype = Literal["float32", "bfloat16", "float16"]


class LossScale:
    """What a loss is multiplied by so that fp16 gradients do not vanish; 1 for all other dtypes.

    ``scale`` is there to be logged. It halves after a step whose gradients were not finite, and
    doubles after ``patience`` finite ones in a row: powers of two never round. One
    decision serves all ranks if they are given the same answer to "finite?", as the norm of the
    summed gradients is. torch's `GradScaler` decides by itself, only for fp16, and has no least
    scale from which a gradient that is not finite is a fault.
    """

    def __init__(
        self,
        compute_dtype: ComputeDtype,
        *,
        initial: float = 2.0**16,
        least: float = 1.0,
        most: float = 2.0**24,
        patience: int = 2000,
    ) -> None:
        if compute_dtype not in get_args(ComputeDtype):
            raise ConfigError(
                f"compute_dtype={compute_dtype!r} is unknown",
                hint=f"known: {', '.join(get_args(ComputeDtype))}",
            )
        self.enabled = compute_dtype == "float16"
        self.least, self.most, self.patience = least, most, patience
        self.scale = initial if self.enabled else 1.0
        self.finite_in_a_row = 0

    @property
    def exhausted(self) -> bool:
        """Whether a smaller scale cannot help: a gradient that is not finite is then a fault."""
        return not self.enabled or self.scale <= self.least

    def scaled(self, loss: Tensor) -> Tensor:
        """Give the loss to call ``backward`` on, in fp32."""
        return loss.float() * self.scale if self.enabled else loss

    @torch.no_grad()
    def unscale(self, parameters: Iterable[Tensor]) -> None:
        """Divide gradients in place; before they are clipped, once a step."""
        if self.scale == 1.0:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        parts = [g.to_local() if isinstance(g, DTensor) else g for g in gradients]
        if parts:
            torch._foreach_mul_(parts, 1 / self.scale)

    def update(self, *, finite: bool) -> None:
        """Move the scale after a step, taken or skipped."""
        if not self.enabled:
            return
        if not finite:
            self.scale = max(self.least, self.scale / 2)
            self.finite_in_a_row = 0
            return
        self.finite_in_a_row += 1
        if self.finite_in_a_row == self.patience:
            self.scale = min(self.most, self.scale * 2)
            self.finite_in_a_row = 0

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint's notes must hold; JSON."""
        return {"scale": self.scale, "finite_in_a_row": self.finite_in_a_row}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from a saved scale; a run that changed to another dtype begins its own."""
        if self.enabled:
            self.scale = min(self.most, max(self.least, float(state["scale"])))
            self.finite_in_a_row = int(state["finite_in_a_row"]) % self.patience


class SkippedSteps:
    """Counts steps that were skipped, and ends a run that no longer learns.

    Skips by which a loss scale finds its size count in a row, not in total.
    """

    def __init__(self, *, in_a_row: int = 20, in_total: int = 200) -> None:
        if in_a_row < 0 or in_total < 0:
            raise ConfigError(f"in_a_row={in_a_row} and in_total={in_total} must not be below 0")
        self.limits = {"in_a_row": in_a_row, "in_total": in_total}
        self.counts = {"in_a_row": 0, "in_total": 0}

    def record(self, *, finite: bool, images_seen: int, scale: LossScale | None = None) -> bool:
        """Take note of a step and say whether to take it; call before the scale is updated.

        Raises:
            NumericsError: if more steps than allowed were skipped, in a row or in total.
        """
        if finite:
            self.counts["in_a_row"] = 0
            return True
        self.counts["in_a_row"] += 1
        self.counts["in_total"] += scale is None or scale.exhausted
        for name, limit in self.limits.items():
            if self.counts[name] > limit:
                raise NumericsError(
                    f"gradients were not finite in {self.counts[name]} steps "
                    f"{name.replace('_', ' ')}, the last at {images_seen} images",
                    hint="lower peak_lr, or use compute_dtype=float32",
                )
        return False

    def state_dict(self) -> dict[str, int]:
        """The counts; JSON."""
        return dict(self.counts)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on counting."""
        self.counts = {name: int(state[name]) for name in self.counts}
