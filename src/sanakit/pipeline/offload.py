"""Parts of a model move between devices: for good, or only while their stage runs."""

from __future__ import annotations

import torch
from torch import nn

from sanakit.errors import ConfigError
from sanakit.pipeline.components import Components
from sanakit.pipeline.placement import device_named
from sanakit.quant.quantise import is_movable


def move(components: Components, device: str | torch.device) -> None:
    """Move all networks to a device.

    Raises:
        ConfigError: a device that does not exist, or a part in 8 bits that is elsewhere: those
            layers stay where they were loaded. Nothing is moved then.
    """
    place = device_named(device)
    parts = networks(components)
    for name, module in parts.items():
        here = next(module.parameters()).device
        if not is_movable(module) and here.type != place.type:
            raise ConfigError(
                f"the {name} is quantised to 8 bits on {here} and cannot be moved to {place}",
                hint=f'load it there: from_pretrained(..., device_map="{place}")',
            )
    for module in parts.values():
        if is_movable(module):
            # Not its own `to`, by which transformers refuses 4-bit models.
            nn.Module.to(module, place)


def networks(components: Components) -> dict[str, nn.Module]:
    """The parts that hold weights, in the order in which a request runs them."""
    return {
        "text encoder": components.prompts.text_encoder.llm,
        "transformer": components.transformer,
        "autoencoder": components.autoencoder,
    }
