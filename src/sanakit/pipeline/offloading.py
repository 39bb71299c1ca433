"""Parts that are on a device only while they run: by stage, or layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any, cast

import torch
from accelerate.hooks import AlignDevicesHook, ModelHook, add_hook_to_module
from accelerate.utils import send_to_device
from torch import nn
from transformers import PreTrainedModel

from sanakit.errors import ConfigError
from sanakit.pipeline.placement import (
    TEXT_ENCODER,
    Networks,
    Visit,
    accelerator,
    bring,
    device_named,
    move,
)
from sanakit.quant.quantize import is_movable, is_quantized


def offload_by_stage(networks: Networks, device: str | torch.device | None = None) -> Visit:
    """Keep all networks on the CPU; the text encoder comes to a device by itself when it runs.

    Gives the context in which a network is there, for one thread at a time: who comes second waits.
    What a stage makes is on the device, and the next takes it over from there.
    """
    there = accelerator() if device is None else device_named(device)
    _require_offloadable(networks, is_movable, "4 bits can be offloaded")
    move(networks, "cpu")
    encoder = networks.get(TEXT_ENCODER)
    if encoder is not None:
        # Prompts are encoded from several places, all through the forward of the LLM.
        add_hook_to_module(encoder, _ComeAndGo(there))
    alone = one_at_a_time()

    @contextmanager
    def visit(module: nn.Module) -> Iterator[None]:
        with alone(module):
            if module is encoder:
                yield
                return
            bring(module, there)
            try:
                yield
            finally:
                bring(module, torch.device("cpu"))

    return visit


def one_at_a_time() -> Visit:
    """Give the context in which one thread has a network for itself."""
    locks: dict[int, Any] = {}
    return lambda module: locks.setdefault(id(module), RLock())


class _ComeAndGo(ModelHook):
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


def offload_sequentially(networks: Networks, device: str | torch.device | None = None) -> Visit:
    """Keep weights on the CPU and bring each layer's to ``device`` only while it runs.

    On the device stay the tensors by which networks tell their device; token embeddings are looked
    up on the CPU. The least memory and the slowest way. Gives the context in which one thread at a
    time has a network.
    """
    place = accelerator() if device is None else device_named(device)
    _require_offloadable(networks, lambda part: not is_quantized(part), "quantized parts stay")
    move(networks, "cpu")
    if (transformer := networks.get("transformer")) is not None:
        _offload_layers(transformer, place, resident=("", "proj_out"))
    for part in ("controlnet", "autoencoder"):
        if (network := networks.get(part)) is not None:
            first = next(name for name, _ in network.named_parameters()).rpartition(".")[0]
            _offload_layers(network, place, resident=(first,))
    if (llm := networks.get(TEXT_ENCODER)) is not None:
        embeddings = cast(PreTrainedModel, llm).get_input_embeddings()
        names = [name for name, module in llm.named_modules() if module is embeddings]
        _offload_layers(llm, place, resident=(), untouched=names)
        on_cpu = AlignDevicesHook(
            execution_device="cpu", io_same_device=True, place_submodules=False
        )
        add_hook_to_module(embeddings, on_cpu)
        add_hook_to_module(llm, AlignDevicesHook(execution_device=place, place_submodules=False))
    return one_at_a_time()


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
    networks: Networks, allows: Callable[[nn.Module], bool], hint: str
) -> None:
    for name, module in networks.items():
        if not allows(module):
            raise ConfigError(
                f"the {name} is quantized in a way that cannot be offloaded so", hint=hint
            )
