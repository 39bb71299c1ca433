"""LoRA under the methods that users of diffusers know, for linear layers of the transformer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sanakit.errors import ConfigError, did_you_mean
from sanakit.nn.lora import STRENGTH, LoraLinear
from sanakit.weights.lora import (
    LORA_FILE,
    LoraPair,
    check_lora,
    find_lora,
    lora_pairs,
    read_lora,
    write_lora,
)


def lora_layers(module: nn.Module) -> list[LoraLinear]:
    """All layers of a module that carry an adapter."""
    return [layer for layer in module.modules() if isinstance(layer, LoraLinear)]


@contextmanager
def lora_strength(module: nn.Module, strength: float | None) -> Iterator[None]:
    """Weigh all adapters within the block, in this thread; None leaves them as they are."""
    layers = lora_layers(module)
    if strength is None or (strength == 1.0 and not layers):
        yield
        return
    if not layers or layers[0].unmerged is not None:
        raise ConfigError(
            f"attention_kwargs asks for LoRA of strength {strength}, and "
            + ("the LoRA is merged into the weights" if layers else "no LoRA is loaded"),
            hint="call unfuse_lora first" if layers else "call load_lora_weights first",
        )
    before = STRENGTH.set(strength)
    try:
        yield
    finally:
        STRENGTH.reset(before)


class LoraMethods:
    """Load, weigh, merge and save LoRA weights; pipelines that share a transformer share them."""

    transformer: Any

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | Path | Mapping[str, Tensor],
        adapter_name: str | None = None,
        *,
        weight_name: str | None = None,
    ) -> None:
        """Put an adapter on: a file, a folder that holds one, or its tensors.

        Loading further ones adds them up. On an error nothing is loaded.

        Raises:
            MissingModelError: no such file. WeightsError: it does not fit. ConfigError: the name is
            taken, or adapters are merged at the moment.
        """
        if isinstance(pretrained_model_name_or_path_or_dict, Mapping):
            source = "LoRA"
            pairs = lora_pairs(pretrained_model_name_or_path_or_dict, source=source)
        else:
            path = find_lora(pretrained_model_name_or_path_or_dict, weight_name)
            source, pairs = str(path), read_lora(path)
        names = self.get_list_adapters()
        name = f"default_{len(names)}" if adapter_name is None else adapter_name
        if name in names or not name or "." in name:
            raise ConfigError(
                f"adapter_name={name!r} is taken or no name", hint=f"loaded: {', '.join(names)}"
            )
        self._require_unmerged()
        check_lora(self.transformer, pairs, source=source)
        modules = dict(self.transformer.named_modules())
        for layer, pair in pairs.items():
            found = modules[layer]
            if not isinstance(found, LoraLinear):
                found = LoraLinear(found)
                self._exchange(layer, found)
            found.add(name, pair.down, pair.up, pair.scale)

    def unload_lora_weights(self) -> None:
        """Take all adapters off; merged ones are taken out of the weights first, to the bit."""
        self.unfuse_lora()
        for layer, module in list(self.transformer.named_modules()):
            if isinstance(module, LoraLinear):
                self._exchange(layer, module.plain())

    def get_list_adapters(self) -> list[str]:
        """Names of the adapters, in the order they were loaded."""
        return list(dict.fromkeys(n for x in lora_layers(self.transformer) for n in x.scales))

    def fuse_lora(self, *, lora_scale: float = 1.0) -> None:
        """Add all adapters to the weights: faster, at the price of a copy of these weights.

        Raises:
            ConfigError: there is none.
        """
        if not lora_layers(self.transformer):
            raise ConfigError("no LoRA is loaded", hint="call load_lora_weights first")
        for layer in lora_layers(self.transformer):
            layer.merge(lora_scale)

    def unfuse_lora(self) -> None:
        """Undo :meth:`fuse_lora`, to the bit."""
        for layer in lora_layers(self.transformer):
            layer.unmerge()

    def set_adapters(
        self,
        adapter_names: str | Sequence[str],
        adapter_weights: float | Sequence[float] = 1.0,
    ) -> None:
        """Weigh the named adapters anew, on top of alpha / rank; all others are put to zero.

        Raises:
            ConfigError: for a name that is not loaded, or another number of weights than names.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        weights = (
            [float(adapter_weights)] * len(names)
            if isinstance(adapter_weights, int | float)
            else list(adapter_weights)
        )
        if len(weights) != len(names):
            raise ConfigError(f"{len(weights)} adapter_weights for {len(names)} adapters")
        known = self.get_list_adapters()
        for name in names:
            if name not in known:
                raise ConfigError(f"adapter {name!r} is not loaded", hint=did_you_mean(name, known))
        self._require_unmerged()
        wanted = dict(zip(names, weights, strict=True))
        for layer in lora_layers(self.transformer):
            layer.weigh({name: wanted.get(name, 0.0) for name in layer.scales})

    @staticmethod
    def save_lora_weights(
        save_directory: str | Path,
        transformer_lora_layers: Mapping[str, Tensor],
        *,
        weight_name: str = LORA_FILE,
        transformer_lora_adapter_metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Write tensors named ``transformer_blocks.0.attn1.to_q.lora_A.weight`` for diffusers.

        Raises:
            WeightsError: for tensors that are no LoRA. DataError: the disk refuses.
        """
        folder = Path(save_directory)
        pairs: dict[str, LoraPair] = lora_pairs(transformer_lora_layers, source="LoRA")
        folder.mkdir(parents=True, exist_ok=True)
        write_lora(folder / weight_name, pairs, metadata=transformer_lora_adapter_metadata)

    def _exchange(self, layer: str, module: nn.Module) -> None:
        parent, _, child = layer.rpartition(".")
        self.transformer.get_submodule(parent).register_module(child, module)

    def _require_unmerged(self) -> None:
        if any(layer.unmerged is not None for layer in lora_layers(self.transformer)):
            raise ConfigError("LoRA weights are merged", hint="call unfuse_lora first")
