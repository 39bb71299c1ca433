"""One door to all optimizers: a name, what is trained, and settings that fit the name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from sanakit.errors import ConfigError
from sanakit.pipeline.keywords import nearest, refuse_unknown
from sanakit.train.optim.adamw8bit import AdamW8bit
from sanakit.train.optim.came import CAME

OptimizerName = Literal["adamw", "came", "came8bit", "adamw8bit"]
NAMES: tuple[str, ...] = get_args(OptimizerName)
Named = Iterable[tuple[str, nn.Parameter]]


@refuse_unknown
def build_optimizer(
    name: OptimizerName,
    parameters: nn.Module | Named,
    *,
    lr: float,
    betas: tuple[float, ...] | None = None,
    eps: float | tuple[float, float] | None = None,
    weight_decay: float = 0.0,
    lr_scale: Mapping[str, float] | None = None,
) -> Optimizer:
    """Give an optimizer for all parameters that ask for a gradient.

    ``betas`` and ``eps`` are two numbers and one for AdamW, by default (0.9, 0.999) and 1e-8;
    three and two for CAME, (0.9, 0.999, 0.9999) and (1e-30, 1e-16). Weights of two and more
    dimensions decay, vectors do not. ``lr_scale`` multiplies the rate of parameters by name, or by
    pattern: ``{"text_encoder.*": 0.1}``; each group keeps its multiplier as ``lr_scale``, which
    :func:`set_rate` honours.

    Raises:
        ConfigError: an unknown name; betas or eps that do not fit it; a pattern that matches
            nothing, or a parameter that two patterns scale.
    """
    if name not in NAMES:
        raise ConfigError(f"optimizer {name!r} is unknown", hint=nearest(str(name), NAMES))
    pairs = parameters.named_parameters() if isinstance(parameters, nn.Module) else parameters
    trained = [(key, value) for key, value in pairs if value.requires_grad]
    if not trained:
        raise ConfigError("no parameter asks for a gradient: there is nothing to train")
    groups = _groups(trained, lr, weight_decay, lr_scale or {})
    moments = 3 if name.startswith("came") else 2
    if betas is not None and len(betas) != moments:
        raise ConfigError(f"betas={betas}: {name} takes {moments} numbers")
    if eps is not None and isinstance(eps, tuple) != name.startswith("came"):
        raise ConfigError(
            f"eps={eps}: {name} takes {'two numbers' if name.startswith('came') else 'one number'}"
        )
    settings: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
    settings |= {"betas": betas} if betas is not None else {}
    settings |= {"eps": eps} if eps is not None else {}
    if name == "adamw":
        return AdamW(groups, fused=_fused(value for _, value in trained), **settings)
    if name == "adamw8bit":
        return AdamW8bit(groups, **settings)
    return CAME(groups, eight_bit=name == "came8bit", **settings)


def set_rate(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of a step, times each group's ``lr_scale``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


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


def _groups(
    trained: list[tuple[str, nn.Parameter]],
    lr: float,
    weight_decay: float,
    lr_scale: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Parameters of one decay and one multiplier together, in the order they came."""
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    used = set()
    for name, parameter in trained:
        patterns = [pattern for pattern in lr_scale if fnmatchcase(name, pattern)]
        if len(patterns) > 1:
            raise ConfigError(f"lr_scale: {name} is matched by {' and '.join(map(repr, patterns))}")
        used.update(patterns)
        scale = lr_scale[patterns[0]] if patterns else 1.0
        decay = weight_decay if parameter.ndim > 1 else 0.0
        found.setdefault((decay, scale), []).append(parameter)
    for pattern, scale in lr_scale.items():
        if pattern not in used:
            raise ConfigError(
                f"lr_scale: {pattern!r} matches no parameter that is trained",
                hint=nearest(pattern, [name for name, _ in trained][:1000]),
            )
        if not scale >= 0:
            raise ConfigError(f"lr_scale: {pattern!r}: {scale} must not be below 0")
    return [
        {"params": members, "weight_decay": decay, "lr": lr * scale, "lr_scale": scale}
        for (decay, scale), members in found.items()
    ]


def _fused(parameters: Iterable[Tensor]) -> bool:
    """Whether torch has its one-pass step for all of these."""
    return all(p.device.type in ("cpu", "cuda") and torch.is_floating_point(p) for p in parameters)
