"""One network from its folder: built without memory, filled strictly, quantised where asked."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from sanakit.errors import ConfigError, WeightsError
from sanakit.models.config import config_from_dict
from sanakit.quant.quantise import quantise, restore
from sanakit.quant.recipe import BitsAndBytes, Recipe, recipe_of
from sanakit.weights.load import load_strict
from sanakit.weights.store import (
    MAX_SHARD_BYTES,
    Storage,
    read_config,
    read_quantization,
    read_weights,
    write_config,
    write_weights,
)

N = TypeVar("N", bound="Network")


class Network(nn.Module):
    """What a network of ours adds to its arithmetic: how it is built, filled and written."""

    config: Any
    config_class: ClassVar[type[Any]]
    published_name: ClassVar[str]
    keep: ClassVar[tuple[str, ...]] = ()
    """Modules that are not quantised unless the caller's own list replaces this one."""
    always_keep: ClassVar[tuple[str, ...]] = ()
    """Modules that are never quantised: the network's dtype and device are read from them."""
    quantized_with: Recipe | None = None

    def __init__(self, config: Any = None, **fields: Any) -> None:
        """Take a frozen config, or the fields of one by name.

        Raises:
            ConfigError: for a field that the config does not have, or a value it refuses.
        """
        if config is None or fields:
            known = {} if config is None else {"config": config}
            fields = known | fields
            config = config_from_dict(self.config_class, fields, source=type(self).__name__)
        super().__init__(config)

    @classmethod
    def explain_misfit(cls, names: Collection[str], config: Any) -> str | None:
        """Say which model weights of these names are of, where they are not of ``config``."""
        return None


def build(kind: type[N], folder: Path) -> N:
    """Make the network that ``config.json`` describes on the meta device: no memory is used.

    Raises:
        MissingModelError: no config. ConfigError: one that cannot be built.
    """
    with torch.device("meta"):
        return kind(read_config(folder, kind.config_class))


def fill(
    network: N,
    folder: Path,
    *,
    dtype: torch.dtype,
    variant: str | None = None,
    quantization: Any = None,
    device: str | torch.device = "cpu",
) -> N:
    """Give a network of :func:`build` its weights, frozen and ready to run, on ``device``.

    Real tensors are mapped where they have the dtype already, else converted one by one. Linear
    layers are rounded from the dtype they are stored in; a folder whose config says that they are
    quantised already is taken as it is.

    Raises:
        MissingModelError: no weights there. WeightsError: weights that are damaged or do not fit.
        ConfigError: a quantization that cannot be made.
    """
    stored = read_quantization(folder)
    if stored is not None and quantization is not None:
        raise ConfigError(f"{folder}: is quantised already", hint="leave quantization_config out")
    asked = quantization if stored is None else stored
    recipe = None if asked is None else recipe_of(asked)
    state = read_weights(folder, variant=variant, dtype=dtype if recipe is None else None)
    filled: list[str] = []
    if recipe is not None and stored is not None:
        filled = restore(network, state, recipe, dtype=dtype, device=device, source=str(folder))
        state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    try:
        load_strict(network, state, source=str(folder), filled=filled)
    except WeightsError as error:
        hint = network.explain_misfit(state.keys(), network.config) or error.hint
        raise WeightsError(error.message, hint=hint) from None
    del state
    network.eval().requires_grad_(False)
    network.quantized_with = recipe
    if recipe is None or stored is not None:
        return network.to(device)
    kept = (network.keep, network.always_keep)
    quantise(network, recipe, keep=kept[0], always_keep=kept[1], dtype=dtype, device=device)
    return network


def write(
    network: nn.Module,
    folder: Path,
    *,
    published_name: str,
    variant: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    storage: Storage = "as-is",
) -> None:
    """Write config and weights in the published layout; quantised layers of bitsandbytes as such.

    Raises:
        ConfigError: for weights of torchao, which have no published layout; nothing is written.
        DataError: the disk refuses.
    """
    recipe = stored_as(network)
    write_config(folder, network.config, published_name, quantization=recipe)
    write_weights(
        folder,
        network.state_dict(),
        variant=variant,
        max_shard_bytes=max_shard_bytes,
        storage=storage,
    )


def stored_as(network: nn.Module) -> Mapping[str, Any] | None:
    """How quantised weights are described on disk; None where they are real.

    Raises:
        ConfigError: for weights of torchao.
    """
    recipe = getattr(network, "quantized_with", None)
    if recipe is None:
        return None
    if not isinstance(recipe, BitsAndBytes):
        raise ConfigError(
            "weights of torchao have no published layout",
            hint="save the model before it is quantised, and quantise when loading",
        )
    return recipe.to_json()
