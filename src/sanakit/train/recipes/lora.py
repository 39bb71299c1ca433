"""Low-rank adapters to train, and the pairs of matrices that a LoRA file holds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sanakit.errors import ConfigError
from sanakit.nn.lora import adapt
from sanakit.weights.lora import LoraPair

NAME = "lora"
_IN_BLOCK = re.compile(r"^transformer_blocks\.\d+\.")
USUAL_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""All linear layers of both attentions; the published trainers leave ``to_out.0`` out."""


def add_adapters(
    transformer: nn.Module,
    *,
    rank: int,
    alpha: float | None = None,
    targets: Sequence[str] = USUAL_TARGETS,
    seed: int = 0,
) -> list[str]:
    """Freeze a transformer and give its linear layers adapters to train; returns their names.

    A target is a layer's whole name or the end of it after a dot, as in PEFT. ``down`` starts
    normal with standard deviation 1 / rank, ``up`` at zero: the outputs are those of before, to the
    bit. The change of a weight is ``alpha / rank * up @ down``; ``alpha`` None is the rank.
    From here on ``state_dict`` holds the adapters alone.

    Raises:
        ConfigError: a rank below 1 or above what a layer has, a target that no linear layer has.
    Source: diffusers examples/dreambooth/train_dreambooth_lora_sana.py.
    """
    if rank < 1:
        raise ConfigError(f"lora_rank={rank} must be at least 1")
    transformer.requires_grad_(False)
    linear = {
        name: layer for name, layer in transformer.named_modules() if isinstance(layer, nn.Linear)
    }
    chosen = []
    for target in targets:
        found = [name for name in linear if name == target or name.endswith(f".{target}")]
        if not found:
            ends = sorted({_IN_BLOCK.sub("", name) for name in linear})
            raise ConfigError(
                f"lora_targets: no linear layer is called {target!r}",
                hint=f"layers: {', '.join(ends)}; a convolution cannot be adapted",
            )
        chosen += [name for name in found if name not in chosen]
    generator = torch.Generator().manual_seed(seed)
    for name in sorted(chosen):
        plain = linear[name]
        most = min(plain.in_features, plain.out_features)
        if rank > most:
            raise ConfigError(
                f"lora_rank={rank}: {name} is {plain.out_features} x {plain.in_features}",
                hint=f"a rank of at most {most}; far less is usual",
            )
        adapted = adapt(plain)
        down = torch.randn(rank, plain.in_features, generator=generator) / rank
        up = torch.zeros(plain.out_features, rank)
        adapted.add(
            NAME,
            down,
            up,
            (rank if alpha is None else alpha) / rank,
            dtype=torch.float32,
            device=plain.weight.device,
            trained=True,
        )
        adapted.set_adapter(NAME)
    transformer.register_state_dict_post_hook(_only_adapters)
    return sorted(chosen)


def adapter_pairs(tensors: Mapping[str, Tensor], *, alpha: float | None) -> dict[str, LoraPair]:
    """The pairs by layer of what ``state_dict`` gave after :func:`add_adapters`."""
    pairs = {}
    for key, down in tensors.items():
        layer, found, _ = key.partition(f".lora_A.{NAME}.")
        if found:
            up = tensors[f"{layer}.lora_B.{NAME}.weight"]
            given = float(down.shape[0]) if alpha is None else alpha
            pairs[layer] = LoraPair(down=down, up=up, alpha=given)
    return pairs


@torch.no_grad()
def merge_pairs(transformer: nn.Module, pairs: Mapping[str, LoraPair]) -> None:
    """Add the changes to the weights, summed in fp32."""
    for layer, pair in pairs.items():
        weight = transformer.get_submodule(layer).get_parameter("weight")
        change = pair.scale * (pair.up.float() @ pair.down.float())
        weight.copy_((weight.float() + change).to(weight.dtype))


def _only_adapters(
    module: nn.Module, state: dict[str, Any], prefix: str, metadata: Mapping[str, Any]
) -> None:
    for key in [key for key in state if ".lora_" not in key]:
        del state[key]
