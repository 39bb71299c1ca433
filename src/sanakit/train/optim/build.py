"""Optimizers by name, and the bytes of their states."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from sanakit.errors import ConfigError, did_you_mean
from sanakit.train.optim.adamw8bit import AdamW8bit
from sanakit.train.optim.came import CAME

OptimizerName = Literal["adamw", "came", "came8bit", "adamw8bit"]
NAMES: tuple[str, ...] = get_args(OptimizerName)
Named = Iterable[tuple[str, nn.Parameter]]


def build_optimizer(
    name: OptimizerName,
    parameters: nn.Module | Named,
    *,
    lr: float,
    betas: tuple[float, ...] | None = None,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Give an optimizer for all parameters that ask for a gradient.

    ``betas`` are two numbers for AdamW, by default (0.9, 0.999), and three for CAME, (0.9, 0.999,
    0.9999). Weights of two and more dimensions decay, vectors do not.

    Raises:
        ConfigError: an unknown name, or betas that do not fit it.
    """
    if name not in NAMES:
        raise ConfigError(f"optimizer {name!r} is unknown", hint=did_you_mean(str(name), NAMES))
    pairs = parameters.named_parameters() if isinstance(parameters, nn.Module) else parameters
    trained = [(key, value) for key, value in pairs if value.requires_grad]
    if not trained:
        raise ConfigError("no parameter asks for a gradient: there is nothing to train")
    moments = 3 if name.startswith("came") else 2
    if betas is not None and len(betas) != moments:
        raise ConfigError(f"betas={betas}: {name} takes {moments} numbers")
    by_decay: dict[float, list[nn.Parameter]] = {}
    for _, value in trained:
        by_decay.setdefault(weight_decay if value.ndim > 1 else 0.0, []).append(value)
    groups = [{"params": some, "weight_decay": decay} for decay, some in by_decay.items()]
    settings: dict[str, Any] = {"lr": lr} | ({} if betas is None else {"betas": betas})
    if name == "adamw":
        return AdamW(groups, fused=_fused(value for _, value in trained), **settings)
    if name == "adamw8bit":
        return AdamW8bit(groups, **settings)
    return CAME(groups, eight_bit=name == "came8bit", **settings)


def set_rate(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of a step."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def materialise(optimizer: Optimizer) -> None:
    """Make every state that training makes, without moving a weight: places to load into."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def state_bytes(optimizer: Optimizer) -> int:
    """Bytes that the states take on this rank."""
    slots = [slot for state in optimizer.state.values() for slot in state.values()]
    locals_ = [getattr(slot, "_local_tensor", slot) for slot in slots if isinstance(slot, Tensor)]
    return sum(slot.numel() * slot.element_size() for slot in locals_)


def _fused(parameters: Iterable[Tensor]) -> bool:
    """Whether torch has its one-pass step for all of these."""
    return all(p.device.type in ("cpu", "cuda") and torch.is_floating_point(p) for p in parameters)
