"""CAME: Adam's steps with a row and a column of second moments for a matrix, and a confidence.

For a gradient g of a matrix (M1)-(M8); everything else keeps full second moments, (M3'):

    u = g² + ε1                                                                  (M1)
    R = β2 R + (1 - β2) mean_j u,   C = β2 C + (1 - β2) mean_i u                 (M2)
    ĝ = g · rsqrt(R / mean R)_i · rsqrt(C)_j                                     (M3)
    V = β2 V + (1 - β2) u,   ĝ = g · rsqrt(V)                                    (M3')
    ĝ = ĝ / max(1, RMS(ĝ) / clip)                                                (M4)
    m = β1 m + (1 - β1) ĝ                                                        (M5)
    R' = β3 R' + (1 - β3) mean_j ((ĝ - m)² + ε2),   C' likewise over rows        (M6)
    p = p (1 - lr · wd) - lr · m · rsqrt(R' / mean R')_i · rsqrt(C')_j           (M7)
    p = p (1 - lr · wd) - lr · m            where second moments are full        (M8)

No bias correction; all averages start at zero. Source: Luo et al. 2023, algorithm 2;
NVlabs/Sana diffusion/utils/optimizer.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sanakit.errors import ConfigError
from sanakit.train.optim.base import (
    ExactOptimizer,
    State,
    Summing,
    Update,
    beside,
    local,
    row_slices,
    update_of,
)
from sanakit.train.optim.blocks import (
    block_count,
    decode_range,
    encode_range,
    fits_eight_bits,
)

BLOCK = 2048
FLOOR = float(torch.finfo(torch.float32).tiny)


class CAME(ExactOptimizer):
    """CAME by its formulas, in fp32 whatever the dtype of the weights.

    ``eight_bit`` stores the first moment of matrices of more than 16,384 values as uint8, 256 even
    steps from the least to the largest of each block of 2048 values of a row; the step itself is
    made with the moment before it is rounded. States of a matrix: ``first``, or ``first_codes``,
    ``first_low`` and ``first_scale``; ``row``, ``column``, ``residual_row``, ``residual_column``;
    of all else ``first`` and ``second``.

    Parameters may be sharded by rows (FSDP2): their column sums, sums of rows and RMS are sums
    over ranks, three messages a step for many parameters together.

    Raises:
        ConfigError: a setting outside its range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        eps: tuple[float, float] = (1e-30, 1e-16),
        weight_decay: float = 0.0,
        clip: float = 1.0,
        eight_bit: bool = False,
    ) -> None:
        if len(betas) != 3 or not all(0 <= beta < 1 for beta in betas):
            raise ConfigError(f"betas={betas} must be three numbers in [0, 1)")
        if len(eps) != 2 or (1 - betas[1]) * eps[0] < FLOOR or (1 - betas[2]) * eps[1] < FLOOR:
            raise ConfigError(
                f"eps={eps} must be two numbers that fp32 holds after the first step",
                hint="published: (1e-30, 1e-16)",
            )
        if clip <= 0 or lr < 0 or weight_decay < 0:
            raise ConfigError(
                f"clip={clip} must be above 0, lr={lr} and weight_decay={weight_decay} not below"
            )
        defaults = {
            "lr": lr,
            "betas": tuple(betas),
            "eps": tuple(eps),
            "weight_decay": weight_decay,
            "clip": clip,
            "eight_bit": eight_bit,
        }
        super().__init__(params, defaults)

    def new_state(self, parameter: Tensor, group: dict[str, Any]) -> State:
        """All averages at zero."""
        part = local(parameter)
        if not is_factored(parameter.shape):
            zeros = torch.zeros_like(part, dtype=torch.float32)
            return {
                "first": beside(parameter, zeros, by_rows=True),
                "second": beside(parameter, zeros.clone(), by_rows=True),
            }
        rows, width = part.shape[:2]
        sizes: dict[str, tuple[int, ...]] = {"row": (rows,), "residual_row": (rows,)}
        dtypes = {}
        if group["eight_bit"] and fits_eight_bits(parameter.shape):
            sizes |= dict.fromkeys(("first_low", "first_scale"), (rows, block_count(width, BLOCK)))
            sizes["first_codes"] = (rows, width)
            dtypes["first_codes"] = torch.uint8
        else:
            sizes["first"] = (rows, width)
        state = {}
        for name, size in sizes.items():
            dtype = dtypes.get(name, torch.float32)
            slot = torch.zeros(size, dtype=dtype, device=part.device)
            state[name] = beside(parameter, slot, by_rows=True)
        for name in ("column", "residual_column"):
            column = torch.zeros(width, device=part.device)
            state[name] = beside(parameter, column, by_rows=False)
        return state

    def update(self, parameter: Tensor, state: State, group: dict[str, Any]) -> Update:
        """The step of a matrix, (M1)-(M7), or of anything else, (M8)."""
        assert parameter.grad is not None
        weight, gradient = local(parameter), local(parameter.grad)
        slots = {name: local(slot) for name, slot in state.items()}
        if is_factored(parameter.shape):
            sums = _matrix_step(
                as_matrix(weight), as_matrix(gradient), slots, group, parameter.shape[0]
            )
        else:
            sums = _full_step(weight, gradient, slots, group, parameter.numel())
        return update_of(parameter, sums)


def is_factored(shape: torch.Size) -> bool:
    """Whether a weight is a matrix: a linear layer's, or a 1 x 1 convolution's."""
    return len(shape) >= 2 and all(size == 1 for size in shape[2:])


def as_matrix(weight: Tensor) -> Tensor:
    """View a factored weight as ``rows width``, however its ones are laid out in memory."""
    return weight.view(weight.shape[:2])


def _matrix_step(
    weight: Tensor, gradient: Tensor, state: State, group: dict[str, Any], rows: int
) -> Summing:
    """Step a rank's rows of a matrix; ``rows`` counts those of all ranks.

    Each sum over all rows ends a pass over the gradient; bands of rows stay in a CPU's cache.
    """
    (beta1, beta2, beta3), (eps1, eps2) = group["betas"], group["eps"]
    lr, width = float(group["lr"]), weight.shape[1]
    bands = row_slices(weight)

    row, column = state["row"], state["column"]
    columns = torch.zeros_like(column)
    for band in bands:
        square = gradient[band].float().square()
        row[band].lerp_(square.mean(1).add_(eps1), 1 - beta2)
        columns += square.sum(0)
    total = row.sum()
    yield [columns, total]
    column.lerp_(columns.div_(rows).add_(eps1), 1 - beta2)
    row_gain = (row * (rows / total)).clamp_(min=FLOOR).rsqrt_()
    column_gain = column.rsqrt()

    energy = torch.zeros_like(total)
    for band in bands:
        scaled = gradient[band].float().mul(column_gain).square_()
        energy += scaled.sum(1).sqrt_().mul_(row_gain[band]).square_().sum()
    yield [energy]
    row_gain /= (energy / (rows * width)).sqrt().div_(group["clip"]).clamp_(min=1.0)

    residual_row, residual_column = state["residual_row"], state["residual_column"]
    columns.zero_()
    coded = "first_codes" in state
    first = torch.empty_like(gradient, dtype=torch.float32) if coded else state["first"]
    for band in bands:
        if coded:
            first[band] = _decoded(state, band)
        change = gradient[band].float() * row_gain[band, None]
        change.mul_(column_gain)
        moment = first[band].lerp_(change, 1 - beta1)
        if coded:
            names = ("first_codes", "first_low", "first_scale")
            encode_range(moment, *(state[name][band] for name in names), block=BLOCK)
        residual = change.sub_(moment).square_()
        residual_row[band].lerp_(residual.mean(1).add_(eps2), 1 - beta3)
        columns += residual.sum(0)
    total = residual_row.sum()
    yield [columns, total]
    residual_column.lerp_(columns.div_(rows).add_(eps2), 1 - beta3)

    row_gain = (residual_row * (rows / total)).rsqrt_()
    column_gain = residual_column.rsqrt()
    for band in bands:
        change = first[band] * row_gain[band, None]
        _apply(weight[band], change.mul_(column_gain), lr, group["weight_decay"])


def _full_step(
    weight: Tensor, gradient: Tensor, state: State, group: dict[str, Any], numel: int
) -> Summing:
    """Step what is no matrix; ``numel`` counts the values of all ranks."""
    beta1, beta2, _ = group["betas"]
    gradient = gradient.float()
    state["second"].lerp_(gradient.square().add_(group["eps"][0]), 1 - beta2)
    change = state["second"].rsqrt().mul_(gradient)
    energy = change.square().sum()
    yield [energy]
    change /= (energy / numel).sqrt().div_(group["clip"]).clamp_(min=1.0)
    state["first"].lerp_(change, 1 - beta1)
    _apply(weight, state["first"], float(group["lr"]), group["weight_decay"])


def _decoded(state: State, band: slice) -> Tensor:
    names = ("first_codes", "first_low", "first_scale")
    return decode_range(*(state[name][band] for name in names), block=BLOCK)


def _apply(weight: Tensor, change: Tensor, lr: float, weight_decay: float) -> None:
    """Decay and move; a weight of fewer bits is rounded once."""
    precise = weight.float()
    precise = precise.mul_(1 - lr * weight_decay) if weight_decay else precise
    precise.add_(change, alpha=-lr)
    if precise is not weight:
        weight.copy_(precise)
