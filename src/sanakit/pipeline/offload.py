"""Parts of a model move between devices: for good, or only while their stage runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.hooks import (
    AlignDevicesHook,
    ModelHook,
    add_hook_to_module,
    remove_hook_from_module,
)
from accelerate.utils import send_to_device
from torch import nn

from sanakit.errors import ConfigError
from sanakit.models.autoencoder import Autoencoder
from sanakit.pipeline.components import Components
from sanakit.pipeline.pipeline import Decoded, Pipeline
from sanakit.pipeline.placement import accelerator, device_named
from sanakit.quant.quantize import is_movable, is_quantized
from sanakit.shapes import Latent
from sanakit.weights.catalog import find_checkpoint
from sanakit.weights.dtypes import resolve_dtypes


def networks(components: Components) -> dict[str, nn.Module]:
    """The parts that hold weights, in the order in which a request runs them."""
    return {
        "text encoder": components.prompts.text_encoder.llm,
        "transformer": components.transformer,
        "autoencoder": components.autoencoder,
    }


def move(components: Components, device: str | torch.device) -> None:
    """Move all networks to a device; whatever was offloaded is so no longer.

    Raises:
        ConfigError: a device that does not exist, or a part in 8 bits that is elsewhere: those
            layers stay where they were loaded. Nothing is moved then.
    """
    place = device_named(device)
    parts = networks(components)
    release(components)
    for name, module in parts.items():
        here = next(module.parameters()).device
        if not is_movable(module) and here.type != place.type:
            raise ConfigError(
                f"the {name} is quantized to 8 bits on {here} and cannot be moved to {place}",
                hint=f'load it there: from_pretrained(..., device_map="{place}")',
            )
    for module in parts.values():
        if is_movable(module):
            bring(module, place)


def cast(components: Components, dtype: torch.dtype, *, allow_unsafe: bool = False) -> None:
    """Bring all networks to the dtypes that a model loaded with ``torch_dtype=dtype`` has.

    Raises:
        ConfigError: what `resolve_dtypes` refuses, or a quantized part. Nothing is cast then.
    """
    dtypes = resolve_dtypes(find_checkpoint(components.name), dtype, allow_unsafe=allow_unsafe)
    parts = networks(components)
    for name, module in parts.items():
        if is_quantized(module):
            raise ConfigError(
                f"the {name} is quantized, its dtype cannot be changed",
                hint="name the dtype where it is loaded: from_pretrained(..., torch_dtype=...)",
            )
    chosen = (dtypes.text_encoder, dtypes.transformer, dtypes.vae)
    for module, own in zip(parts.values(), chosen, strict=True):
        nn.Module.to(module, own)


def bring(module: nn.Module, device: torch.device) -> None:
    """Move a network, also a 4-bit one: the ``to`` of transformers' own class refuses those."""
    nn.Module.to(module, device)


def release(components: Components) -> None:
    """Take all offloading off; weights come back to the CPU."""
    for module in networks(components).values():
        remove_hook_from_module(module, recurse=True)


class ModelOffloaded(Pipeline):
    """A core whose networks live on the CPU and come to a device one at a time, for their stage.

    What a stage gives is on the device, and the next takes it over from there.
    """

    def __init__(self, components: Components, device: str | torch.device | None = None) -> None:
        """Take loaded components, which move to the CPU.

        Raises:
            ConfigError: a device that does not exist, or a part in 8 bits, which cannot move.
        """
        super().__init__(components)
        self.device = accelerator() if device is None else device_named(device)
        _require_offloadable(components, is_movable, "4 bits can be offloaded")
        move(components, "cpu")
        # Prompts are encoded from several places, all through the forward of the LLM.
        add_hook_to_module(components.prompts.text_encoder.llm, _Visit(self.device))

    def sample(self, *args: Any, **keywords: Any) -> Latent:
        """As the core, with the transformer on the device meanwhile."""
        with self._here(self.components.transformer):
            return super().sample(*args, **keywords)

    def _decoded(self, run: Callable[[Autoencoder], Decoded]) -> Decoded:
        """As the core, with the autoencoder on the device meanwhile."""
        with self._here(self.components.autoencoder):
            return super()._decoded(run)

    @contextmanager
    def _here(self, module: nn.Module) -> Iterator[None]:
        bring(module, self.device)
        try:
            yield
        finally:
            bring(module, torch.device("cpu"))


class _Visit(ModelHook):
    """Brings a network to a device before its forward, and back to the CPU after."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def pre_forward(self, module: nn.Module, *args: Any, **keywords: Any) -> tuple[Any, Any]:
        """Give the arguments on the device."""
        bring(module, self.device)
        return send_to_device(args, self.device), send_to_device(keywords, self.device)

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        """Give the output as it is, on the device."""
        bring(module, torch.device("cpu"))
        return output


def offload_sequentially(
    components: Components, device: str | torch.device | None = None
) -> torch.device:
    """Keep weights on the CPU and bring each layer's to ``device`` only while it runs.

    On the device stay the tensors by which networks tell their device; token embeddings are looked
    up on the CPU. The least memory and the slowest way.

    Raises:
        ConfigError: a device that does not exist, or a part that is quantized.
    """
    place = accelerator() if device is None else device_named(device)
    _require_offloadable(components, lambda part: not is_quantized(part), "quantized parts stay")
    move(components, "cpu")
    llm = components.prompts.text_encoder.llm
    transformer, autoencoder = components.transformer, components.autoencoder
    first = next(name for name, _ in autoencoder.named_parameters()).rpartition(".")[0]
    _offload_layers(transformer, place, resident=("", "proj_out"))
    _offload_layers(autoencoder, place, resident=(first,))
    embeddings = llm.get_input_embeddings()
    names = [name for name, module in llm.named_modules() if module is embeddings]
    _offload_layers(llm, place, resident=(), untouched=names)
    on_cpu = AlignDevicesHook(execution_device="cpu", io_same_device=True, place_submodules=False)
    add_hook_to_module(embeddings, on_cpu)
    add_hook_to_module(llm, AlignDevicesHook(execution_device=place, place_submodules=False))
    return place


def _offload_layers(
    network: nn.Module,
    device: torch.device,
    *,
    resident: Collection[str],
    untouched: Collection[str] = (),
) -> None:
    for name, layer in list(network.named_modules()):
        own = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
        if name in resident:
            for _, tensor in own:
                tensor.data = tensor.data.to(device)
        elif name not in untouched and any(True for _ in layer.parameters(recurse=False)):
            hook = AlignDevicesHook(
                execution_device=device, offload=True, offload_buffers=True, place_submodules=False
            )
            add_hook_to_module(layer, hook)


def _require_offloadable(
    components: Components, allows: Callable[[nn.Module], bool], hint: str
) -> None:
    for name, module in networks(components).items():
        if not allows(module):
            raise ConfigError(
                f"the {name} is quantized in a way that cannot be offloaded so", hint=hint
            )
