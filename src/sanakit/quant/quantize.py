"""Linear layers of any network become quantized ones, in place and one after the other."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sanakit.errors import ConfigError, did_you_mean
from sanakit.quant import bnb, torchao
from sanakit.quant.recipe import BitsAndBytes, Recipe

NOTHING = torch.empty(0)


def quantize(
    module: nn.Module,
    recipe: Recipe,
    *,
    keep: Sequence[str] = (),
    always_keep: Sequence[str] = (),
    dtype: torch.dtype,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Quantize the linear layers of a network that has its weights; convolutions stay.

    Weights are rounded from the dtype that they have and then let go, so that beside the network
    one layer at a time is in memory twice.

    Args:
        module: any network; changed in place and given back.
        recipe: how, see `recipe_of`.
        keep: modules that stay as they are where the recipe names none itself.
        always_keep: modules that stay as they are whatever the recipe says.
        dtype: of all that is not quantized, and of torchao's products.
        device: where the network goes.

    Raises:
        ConfigError: a library that is not installed, or a name to skip that nothing has.
    """
    names = linear_names(module, (*skipped(module, recipe, keep), *always_keep))
    if isinstance(recipe, BitsAndBytes):
        for name in names:
            replace(module, name, bnb.quantized(_linear(module, name), recipe, device))
    else:
        torchao.quantize(module, recipe, names, dtype, device)
    cast_real(module, dtype)
    return module.to(device)


def restore(
    module: nn.Module,
    state: MutableMapping[str, Tensor],
    recipe: Recipe,
    *,
    dtype: torch.dtype,
    device: str | torch.device,
    source: str,
) -> list[str]:
    """Put in the linear layers that ``state`` holds quantized, whose tensors are taken out of it.

    Gives the names of those layers. Layers whose weights are real stay for strict loading.

    Raises:
        ConfigError: a method whose weights are not stored quantized. WeightsError: misfits.
    """
    if not isinstance(recipe, BitsAndBytes):
        raise ConfigError(
            f"{source}: holds weights of torchao", hint="load real weights and quantize those"
        )
    names = [
        name
        for name in linear_names(module, ())
        if state.get(f"{name}.weight", NOTHING).dtype in (torch.int8, torch.uint8)
    ]
    for name in names:
        layer = bnb.restored(
            _linear(module, name), name, state, recipe, dtype=dtype, device=device, source=source
        )
        replace(module, name, layer)
    return names


def cast_real(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast what is not quantized, tensor by tensor; quantized weights know their dtype."""
    for child in module.modules():
        held = [*child.named_parameters(recurse=False), *child.named_buffers(recurse=False)]
        for name, tensor in held:
            if not (name == "weight" and _holds_quantized(child)) and tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)


def skipped(module: nn.Module, recipe: Recipe, keep: Sequence[str]) -> tuple[str, ...]:
    """What stays as it is: the recipe's own names, else ``keep``.

    Raises:
        ConfigError: for a name of the recipe that is no part of any module's name.
    """
    if recipe.skip is None:
        return tuple(keep)
    parts = {part for name, _ in module.named_modules() for part in name.split(".")}
    whole = {name for name, _ in module.named_modules()}
    for name in recipe.skip:
        if name not in parts | whole:
            raise ConfigError(
                f"modules to skip name {name!r}, which {type(module).__name__} does not have",
                hint=did_you_mean(name, sorted(parts - {""})),
            )
    return recipe.skip


def linear_names(module: nn.Module, skip: Sequence[str]) -> list[str]:
    """Names of linear layers, without those that are, or lie in, a module named in ``skip``."""

    def stays(name: str) -> bool:
        # A dotted name is a place from the top, a single word any part of the way.
        return any(
            name == each or name.startswith(f"{each}.") or each in name.split(".") for each in skip
        )

    return [
        name
        for name, child in module.named_modules()
        if isinstance(child, nn.Linear) and not stays(name)
    ]


def is_quantized(module: nn.Module) -> bool:
    """Whether any weight is held in fewer than 16 bits."""
    return any(_holds_quantized(child) for child in module.modules())


def is_movable(module: nn.Module) -> bool:
    """Whether the network may change its device: LLM.int8() layers lose their scales on the way."""
    return not any(bnb.is_int8(child) for child in module.modules())


def replace(module: nn.Module, name: str, new: nn.Module) -> None:
    """Put ``new`` in the place of the submodule called ``name``."""
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, new)


def _holds_quantized(child: nn.Module) -> bool:
    return bnb.is_quantized(child) or torchao.is_quantized(child)


def _linear(module: nn.Module, name: str) -> Any:
    return module.get_submodule(name)
