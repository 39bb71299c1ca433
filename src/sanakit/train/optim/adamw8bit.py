"""AdamW whose moments take eight bits each, in blocks of 256 values of a row.

The steps are torch's AdamW. Between them the first moment is kept as roots and the second as
fourth roots relative to their block's largest, which spends the codes on small values, as the
dynamic maps of Dettmers et al. 2022 do, and is computed without a table. With β2 = 0.999 a second
moment moves by less than a code a step; the rounding threshold therefore walks with the step by the
golden ratio, so that small moves add up and are not lost.
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
    decode_positive,
    decode_signed,
    encode_positive,
    encode_signed,
    fits_eight_bits,
)

BLOCK = 256
GOLDEN = (5**0.5 - 1) / 2


class AdamW8bit(ExactOptimizer):
    """AdamW in fp32 arithmetic, with 8-bit moments for tensors of more than 16,384 values.

    Smaller tensors, and those with rows of fewer than 32 values (depthwise convolutions), keep
    their moments in fp32: ``first`` and ``second``. Others have ``first_codes`` (int8),
    ``second_codes`` (uint8) and a ``_scale`` for each; all have ``step``. Parameters may be
    sharded by rows (FSDP2).

    Raises:
        ConfigError: a setting outside its range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ConfigError(f"betas={betas} must be two numbers in [0, 1)")
        if eps <= 0 or lr < 0 or weight_decay < 0:
            raise ConfigError(
                f"eps={eps} must be above 0, lr={lr} and weight_decay={weight_decay} not below"
            )
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    def new_state(self, parameter: Tensor, group: dict[str, Any]) -> State:
        """Both moments at zero."""
        part = local(parameter)
        state = {"step": torch.zeros(())}
        if not fits_eight_bits(parameter.shape):
            for name in ("first", "second"):
                zeros = torch.zeros_like(part, dtype=torch.float32)
                state[name] = beside(parameter, zeros, by_rows=True)
            return state
        rows, width = part.shape[0], parameter.shape[1:].numel()
        blocks = block_count(width, BLOCK)
        for name, dtype in (("first", torch.int8), ("second", torch.uint8)):
            codes = torch.zeros(rows, width, dtype=dtype, device=part.device)
            scale = torch.zeros(rows, blocks, device=part.device)
            state[f"{name}_codes"] = beside(parameter, codes, by_rows=True)
            state[f"{name}_scale"] = beside(parameter, scale, by_rows=True)
        return state

    def update(self, parameter: Tensor, state: State, group: dict[str, Any]) -> Update:
        """The step of one tensor, which needs no other rank's rows."""
        assert parameter.grad is not None
        slots = {name: local(slot) for name, slot in state.items()}
        return update_of(parameter, _alone(local(parameter), local(parameter.grad), slots, group))


def _alone(weight: Tensor, gradient: Tensor, state: State, group: dict[str, Any]) -> Summing:
    """An update that asks for no sums."""
    state["step"] += 1
    if "first" in state:
        _move(weight, gradient.float(), state["first"], state["second"], state["step"], group)
    else:
        _step_of_codes(weight, gradient, state, group)
    return
    yield []


def _step_of_codes(weight: Tensor, gradient: Tensor, state: State, group: dict[str, Any]) -> None:
    gradient = gradient.flatten(1)
    threshold = (0.5 + GOLDEN * float(state["step"])) % 1.0
    for band in row_slices(gradient):
        coded = [state[name][band] for name in ("first_codes", "first_scale")]
        coded_second = [state[name][band] for name in ("second_codes", "second_scale")]
        first = decode_signed(*coded, block=BLOCK)
        second = decode_positive(*coded_second, block=BLOCK)
        _move(weight[band], gradient[band].float(), first, second, state["step"], group)
        encode_signed(first, *coded, block=BLOCK)
        encode_positive(second, *coded_second, block=BLOCK, threshold=threshold)


def _move(
    weight: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    step: Tensor,
    group: dict[str, Any],
) -> None:
    """AdamW's step; moments may be flat where the weight is not."""
    (beta1, beta2), lr, count = group["betas"], float(group["lr"]), float(step)
    first.lerp_(gradient, 1 - beta1)
    second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    unbiased = (1 - beta2**count) ** 0.5
    spread = second.sqrt().add_(group["eps"] * unbiased)
    precise = weight.float()
    if group["weight_decay"]:
        precise.mul_(1 - lr * group["weight_decay"])
    size = -lr * unbiased / (1 - beta1**count)
    precise.addcdiv_(first.view(weight.shape), spread.view(weight.shape), value=size)
    if precise is not weight:
        weight.copy_(precise)
