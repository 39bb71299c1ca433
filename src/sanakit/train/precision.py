"""STAND-IN until the branch optim is merged."""

from __future__ import annotations
from collections.abc import Iterable
from torch import Tensor, nn
from sanakit.errors import NumericsError


class LossScale:
    def __init__(self, *, enabled: bool) -> None:
        self.enabled, self.value = enabled, 1.0

    def scale(self, loss: Tensor) -> Tensor:
        return loss

    def unscale(self, parameters: Iterable[nn.Parameter]) -> None:
        pass

    def update(self, finite: bool) -> None:
        pass

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.value = state["value"]


class SkipCounter:
    def __init__(self, *, most: int) -> None:
        self.most, self.total = most, 0

    def count(self, finite: bool, images_seen: int) -> None:
        self.total += not finite
        if self.total > self.most:
            raise NumericsError(
                f"gradients were not finite in {self.total} steps, the last at {images_seen} images",
                hint="lower peak_lr, or use compute_dtype=float32",
            )
