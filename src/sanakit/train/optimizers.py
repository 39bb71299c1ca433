"""STAND-IN until the branch optim is merged."""

from __future__ import annotations
from collections.abc import Mapping
from typing import Any
import torch
from torch import nn


def build_optimizer(
    name: str,
    parameters: Mapping[str, nn.Parameter],
    *,
    lr: float,
    betas: tuple[float, ...],
    weight_decay: float,
) -> torch.optim.Optimizer:
    matrices = [p for p in parameters.values() if p.ndim > 1]
    vectors = [p for p in parameters.values() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


def materialise(optimizer: torch.optim.Optimizer) -> None:
    rates = [g["lr"] for g in optimizer.param_groups]
    for g in optimizer.param_groups:
        g["lr"] = 0.0
        for p in g["params"]:
            p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for g, lr in zip(optimizer.param_groups, rates):
        g["lr"] = lr
