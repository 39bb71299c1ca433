"""LoRA under the methods that users of diffusers know on a pipeline, for its transformer."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sanakit.errors import ConfigError, did_you_mean, refuse_unknown
from sanakit.nn.lora import lora_layers, lora_strength
from sanakit.pipeline import adapters
from sanakit.pipeline.adapters import Weight
from sanakit.pipeline.pipeline import Pipeline
from sanakit.weights.lora import lora_pairs, read_metadata, write_lora
from sanakit.weights.store import read_tensors

PART = "transformer"
logger = logging.getLogger(__name__)


@contextmanager
def strength_of_call(strength: float | None, *modules: nn.Module) -> Iterator[None]:
    """Weigh all adapters within the block, of modules that draw; None leaves them as they are."""
    layers = [layer for module in modules for layer in lora_layers(module).values()]
    if strength is None or (strength == 1.0 and not layers):
        yield
        return
    if not layers or any(map(adapters.fused_adapters, modules)):
        raise ConfigError(
            f"attention_kwargs asks for LoRA of strength {strength}, and "
            + ("the LoRA is merged into the weights" if layers else "no LoRA is loaded"),
            hint="call unfuse_lora first" if layers else "call load_lora_weights first",
        )
    with lora_strength(strength):
        yield


class LoraMethods:
    """Load, choose, weigh, merge and save LoRA; pipelines that share a transformer share it."""

    core: Pipeline
    transformer: Any
    transformer_name: ClassVar[str] = PART
    _lora_loadable_modules: ClassVar[list[str]] = [PART]

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | Path | Mapping[str, Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        **where: Any,
    ) -> None:
        """Put an adapter on: a file, a folder or hub repository that holds one, or its tensors.

        It alone is active then; `set_adapters` chooses several. On an error nothing is loaded.
        ``where`` are keywords of `adapters.locate_lora` such as ``weight_name``; errors and
        ``hotswap`` are those of `adapters.load_lora_adapter`.
        """
        adapters.load_lora_adapter(
            self._adapted,
            pretrained_model_name_or_path_or_dict,
            hotswap=hotswap,
            adapter_name=adapter_name,
            **where,
        )

    @property
    def _adapted(self) -> Any:
        """The transformer, also where it is compiled; one that is absent says so."""
        network = self.core.components.transformer
        return getattr(network, "_orig_mod", network)

    @classmethod
    def load_lora_into_transformer(
        cls,
        state_dict: Mapping[str, Tensor],
        transformer: nn.Module,
        adapter_name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        hotswap: bool = False,
    ) -> None:
        """Put an adapter on a transformer of its own; errors are those of `load_lora_adapter`."""
        adapters.load_lora_adapter(
            transformer, state_dict, hotswap=hotswap, adapter_name=adapter_name, metadata=metadata
        )

    @classmethod
    def lora_state_dict(
        cls,
        pretrained_model_name_or_path_or_dict: str | Path | Mapping[str, Tensor],
        *,
        return_lora_metadata: bool = False,
        **where: Any,
    ) -> Any:
        """Give the tensors of a LoRA by name and, if asked, PEFT's config of it, which may be None.

        ``where`` are keywords of `adapters.locate_lora`.

        Raises:
            MissingModelError: no such file. WeightsError: it is no LoRA of a transformer.
        """
        given = pretrained_model_name_or_path_or_dict
        metadata: dict[str, Any] | None = None
        if isinstance(given, Mapping):
            tensors = dict(given)
        else:
            path = adapters.locate_lora(given, **where)
            tensors, metadata = read_tensors(path), read_metadata(path)
        lora_pairs(tensors, source=str("LoRA" if isinstance(given, Mapping) else given))
        return (tensors, metadata) if return_lora_metadata else tensors

    def unload_lora_weights(self) -> None:
        """Take all adapters off; what `fuse_lora` merged stays in the weights."""
        if self.transformer is not None:
            adapters.unload_lora(self._adapted)

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Names of the adapters by component, in the order they were loaded; empty without any."""
        held = list(getattr(self.transformer, "peft_config", {}))
        return {PART: held} if held else {}

    def get_active_adapters(self) -> list[str]:
        """Names of the adapters that act."""
        return [] if self.transformer is None else adapters.active_adapters(self._adapted)

    def set_adapters(
        self,
        adapter_names: str | Sequence[str],
        adapter_weights: Weight | Mapping[str, Weight] | Sequence[Any] = None,
    ) -> None:
        """Make the named adapters, and no others, active, on top of alpha / rank.

        A weight is a number, None for one, or a mapping from "transformer" to a number or to one
        by layers, as `adapters.set_adapters` takes it, whose errors are those here too.
        """
        weights: Any = adapter_weights
        if isinstance(weights, list | tuple):
            weights = [_of_transformer(each) for each in weights]
        else:
            weights = _of_transformer(weights)
        adapters.set_adapters(self._adapted, adapter_names, weights)

    def enable_lora(self) -> None:
        """Undo :meth:`disable_lora`."""
        adapters.enable_lora(self._adapted)

    def disable_lora(self) -> None:
        """Let no adapter act until :meth:`enable_lora`; merged ones leave the weights."""
        adapters.disable_lora(self._adapted)

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Let go of adapters; errors are those of `adapters.delete_adapters`."""
        adapters.delete_adapters(self._adapted, adapter_names)

    @refuse_unknown
    def fuse_lora(
        self,
        components: Sequence[str] = (PART,),
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: Sequence[str] | None = None,
    ) -> None:
        """Add the active or the named adapters to the weights: faster, and as large a copy is kept.

        Errors are those of `adapters.fuse_lora`.
        """
        _check_components(components)
        adapters.fuse_lora(self._adapted, lora_scale, safe_fusing, adapter_names)

    @refuse_unknown
    def unfuse_lora(self, components: Sequence[str] = (PART,)) -> None:
        """Undo :meth:`fuse_lora`, to the bit."""
        _check_components(components)
        adapters.unfuse_lora(self._adapted)

    @property
    def fused_loras(self) -> set[str]:
        """Names of the adapters that `unfuse_lora` would take out of the weights."""
        return adapters.fused_adapters(self._adapted)

    @property
    def num_fused_loras(self) -> int:
        """How many these are."""
        return len(self.fused_loras)

    def set_lora_device(
        self, adapter_names: Sequence[str], device: torch.device | str | int
    ) -> None:
        """Move adapters; one that is active must be where the transformer is."""
        adapters.set_lora_device(self._adapted, adapter_names, device)

    def enable_lora_hotswap(self, target_rank: int = 128, check_compiled: str = "error") -> None:
        """Nothing has to be prepared; see `adapters.enable_lora_hotswap`."""
        adapters.enable_lora_hotswap(self._adapted, target_rank, check_compiled)

    @classmethod
    @refuse_unknown
    def save_lora_weights(
        cls,
        save_directory: str | Path,
        transformer_lora_layers: Mapping[str, Tensor] | nn.Module | None = None,
        is_main_process: bool = True,
        weight_name: str | None = None,
        save_function: None = None,
        safe_serialization: bool = True,
        transformer_lora_adapter_metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Write tensors named ``transformer_blocks.0.attn1.to_q.lora_A.weight`` for diffusers.

        Metadata are PEFT's config; without, alpha is taken from the tensors. Only the main process
        writes.

        Raises:
            WeightsError: for tensors that are no LoRA. DataError: the disk refuses. ConfigError:
            no tensors, or a ``save_function``.
        """
        layers = transformer_lora_layers
        if not layers or save_function is not None:
            raise ConfigError(
                "save_function is not called: the file is safetensors"
                if layers
                else "transformer_lora_layers names no tensors",
                hint="pass get_peft_model_state_dict(pipe.transformer)",
            )
        if not is_main_process:
            return
        tensors = layers.state_dict() if isinstance(layers, nn.Module) else layers
        pairs = lora_pairs(tensors, source="LoRA")
        path = adapters.lora_path(
            save_directory, weight_name, safe_serialization=safe_serialization
        )
        write_lora(path, pairs, metadata=transformer_lora_adapter_metadata)


def _of_transformer(weight: Any) -> Any:
    """What a weight by component says of the transformer; others have no LoRA, which is told."""
    if not isinstance(weight, Mapping):
        return weight
    if others := sorted(str(name) for name in weight if name != PART):
        logger.warning(
            "adapter_weights for %s do nothing: LoRA changes the %s alone", ", ".join(others), PART
        )
    return weight.get(PART)


def _check_components(components: Sequence[str]) -> None:
    names = [components] if isinstance(components, str) else list(components)
    for name in names or [""]:
        if name != PART:
            raise ConfigError(
                f"components names {name!r}: LoRA changes the {PART} alone",
                hint=did_you_mean(name, [PART]),
            )
