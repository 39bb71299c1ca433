"""LoRA files: low-rank changes of a transformer's linear layers, under the names of diffusers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from sanakit.errors import MissingModelError, WeightsError
from sanakit.files import listed
from sanakit.weights.store import read_tensors, write_tensors

LORA_FILE = "pytorch_lora_weights.safetensors"
_METADATA = "lora_adapter_metadata"
_PREFIX = "transformer."
# PEFT's names, those of older diffusers, and an optional adapter's name in between.
_KEY = re.compile(
    r"(?:transformer\.|base_model\.model\.)?(?P<layer>.+?)\."
    r"(?:lora_A(?:\.\w+)?\.weight|(?P<down>lora\.down\.weight)|"
    r"(?P<up>lora_B(?:\.\w+)?\.weight|lora\.up\.weight)|(?P<alpha>alpha))"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraPair:
    """The change of one layer: ``alpha / rank * up @ down``."""

    down: Tensor  # rank in
    up: Tensor  # out rank
    alpha: float | None = None
    """None: as much as the rank, so that the factor is one."""

    @property
    def scale(self) -> float:
        """The factor before the product."""
        return 1.0 if self.alpha is None else self.alpha / self.down.shape[0]


def find_lora(source: str | Path, weight_name: str | None = None) -> Path:
    """Give the LoRA file: ``source`` itself, or the one in that folder.

    Raises:
        MissingModelError: there is none, or more than one and none of the usual name.
    """
    path = Path(source)
    if path.is_file():
        return path
    if not path.is_dir():
        raise MissingModelError(
            f"{path}: no such file or folder", hint="download the LoRA first, then give its path"
        )
    held = sorted(file.name for file in path.glob("*.safetensors"))
    wanted = weight_name or (held[0] if len(held) == 1 else LORA_FILE)
    if not (path / wanted).is_file():
        raise MissingModelError(
            f"{path}: has no {wanted}; it holds {listed(held)}", hint="name it with weight_name="
        )
    return path / wanted


def read_lora(path: Path) -> dict[str, LoraPair]:
    """Read a LoRA file: pairs by the name of their layer, ``transformer_blocks.0.attn1.to_q``.

    Raises:
        WeightsError: for a damaged file, or as :func:`lora_pairs`.
    """
    tensors = read_tensors(path)
    with safe_open(path, framework="pt") as file:
        written = (file.metadata() or {}).get(_METADATA)
    return lora_pairs(tensors, source=str(path), metadata=_config(written, path))


def lora_pairs(
    tensors: Mapping[str, Tensor], *, source: str, metadata: Mapping[str, Any] | None = None
) -> dict[str, LoraPair]:
    """Sort tensors by the layer that they change; ``metadata`` is PEFT's config, which has alpha.

    Raises:
        WeightsError: for a name that is no part of a LoRA of a transformer, half a pair, or shapes
            that do not multiply.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _KEY.fullmatch(name)
        if match is None or name.startswith("text_encoder"):
            dora = "dora" in name or "magnitude" in name
            raise WeightsError(
                f"{source}: {name} is no part of a LoRA of a transformer",
                hint="DoRA is not supported: merge it into the weights where it was trained"
                if dora
                else f"names are like {_PREFIX}transformer_blocks.0.attn1.to_q.lora_A.weight",
            )
        kind = "up" if match["up"] else "alpha" if match["alpha"] else "down"
        parts.setdefault(match["layer"], {})[kind] = tensor
    if not parts:
        raise WeightsError(f"{source}: holds no tensor")
    pairs = {}
    for layer, part in parts.items():
        if "down" not in part or "up" not in part:
            raise WeightsError(f"{source}: {layer} has only {', '.join(sorted(part))}")
        down, up = part["down"], part["up"]
        if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
            raise WeightsError(
                f"{source}: {layer} has lora_A {tuple(down.shape)} and lora_B {tuple(up.shape)}",
                hint="lora_A is (rank, in), lora_B (out, rank); convolutions are not supported",
            )
        alpha = float(part["alpha"]) if "alpha" in part else _alpha(metadata or {}, layer)
        pairs[layer] = LoraPair(down=down, up=up, alpha=alpha)
    return pairs


def lora_tensors(pairs: Mapping[str, LoraPair]) -> dict[str, Tensor]:
    """Undo :func:`lora_pairs`: tensors by name, each layer's alpha beside it."""
    tensors = {}
    for layer, pair in pairs.items():
        tensors[f"{_PREFIX}{layer}.lora_A.weight"] = pair.down
        tensors[f"{_PREFIX}{layer}.lora_B.weight"] = pair.up
        if pair.alpha is not None:
            tensors[f"{_PREFIX}{layer}.alpha"] = torch.tensor(pair.alpha)
    return tensors


def write_lora(
    path: Path, pairs: Mapping[str, LoraPair], *, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write a LoRA file that diffusers loads.

    Raises:
        DataError: the disk refuses. WeightsError: no pair.
    """
    if not pairs:
        raise WeightsError(f"{path}: no LoRA layer to write")
    alphas = {layer: pair.alpha for layer, pair in pairs.items() if pair.alpha is not None}
    bare = {layer: replace(pair, alpha=None) for layer, pair in pairs.items()}
    config: dict[str, Any] = dict(metadata or {})
    if alphas and "lora_alpha" not in config:
        ranks = {layer: pair.down.shape[0] for layer, pair in pairs.items()}
        rank = next(iter(ranks.values()))
        config |= {
            "r": rank,
            "rank_pattern": {layer: each for layer, each in ranks.items() if each != rank},
            "lora_alpha": next(iter(alphas.values())),
            "alpha_pattern": {layer: alphas.get(layer, ranks[layer]) for layer in pairs},
            "target_modules": sorted(pairs),
        }
    notes = {}
    if config:
        prefixed = {f"{_PREFIX}{key}": value for key, value in config.items()}
        notes[_METADATA] = json.dumps(prefixed, indent=2, sort_keys=True)
    write_tensors(path, lora_tensors(bare), notes)


def check_lora(module: nn.Module, pairs: Mapping[str, LoraPair], *, source: str) -> None:
    """Refuse pairs that ``module`` has no linear layer of those sizes for.

    Raises:
        WeightsError: naming the first such layer.
    """
    modules = dict(module.named_modules())
    for layer, pair in pairs.items():
        found = modules.get(layer)
        if not isinstance(found, nn.Linear):
            what = "is missing" if found is None else f"is a {type(found).__name__}"
            raise WeightsError(
                f"{source}: {layer} {what}, where the LoRA changes a linear layer",
                hint="it was made for another model",
            )
        made_for = (pair.up.shape[0], pair.down.shape[1])
        if made_for != (found.out_features, found.in_features):
            raise WeightsError(
                f"{source}: {layer} is made for {made_for}, the model has "
                f"{(found.out_features, found.in_features)}",
                hint="it was made for another model",
            )


def _config(written: str | None, path: Path) -> dict[str, Any]:
    if written is None:
        return {}
    try:
        values = json.loads(written)
        return {key.removeprefix(_PREFIX): value for key, value in values.items()}
    except (ValueError, AttributeError) as error:
        raise WeightsError(f"{path}: its {_METADATA} is no JSON object ({error})") from error


def _alpha(metadata: Mapping[str, Any], layer: str) -> float | None:
    """Alpha of a layer in PEFT's config: its own pattern, else that of all."""
    for pattern, alpha in (metadata.get("alpha_pattern") or {}).items():
        if layer == pattern or layer.endswith(f".{pattern}"):
            return float(alpha)
    alpha = metadata.get("lora_alpha")
    return None if alpha is None else float(alpha)
