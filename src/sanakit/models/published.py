"""What a network answers to beside its arithmetic, under the names that users of diffusers know."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import nn

from sanakit.errors import ConfigError, did_you_mean
from sanakit.models.config import config_to_dict

logger = logging.getLogger(__name__)

# Switches that change nothing here, and why: they are taken, and it is said once.
FUSED = "attention is linear in the image and fused to the text already"
DTYPES = "weights are stored and computed in one dtype; a quantization_config makes them smaller"
STAGES = "pipe.enable_model_cpu_offload or enable_sequential_cpu_offload keep weights on the CPU"
NEEDLESS = {
    "enable_xformers_memory_efficient_attention": FUSED,
    "disable_xformers_memory_efficient_attention": FUSED,
    "set_use_memory_efficient_attention_xformers": FUSED,
    "set_use_npu_flash_attention": FUSED,
    "set_use_xla_flash_attention": FUSED,
    "enable_npu_flash_attention": FUSED,
    "disable_npu_flash_attention": FUSED,
    "enable_xla_flash_attention": FUSED,
    "disable_xla_flash_attention": FUSED,
    "set_attention_backend": FUSED,
    "reset_attention_backend": FUSED,
    "set_attention_slice": "attention is linear in the image: there is no map to cut in slices",
    "fuse_qkv_projections": "projections are products of the same speed apart",
    "unfuse_qkv_projections": "nothing was fused",
    "enable_layerwise_casting": DTYPES,
    "enable_group_offload": STAGES,
}
# Names that are not here, and what to write.
INSTEAD = {
    "attn_processors": "attention is not exchanged: a forward hook on transformer_blocks[i].attn1, "
    "or a forward of your own, acts",
    "set_attn_processor": "attention is not exchanged: a forward hook on "
    "transformer_blocks[i].attn1, or a forward of your own, acts",
    "set_default_attn_processor": "there is one way of attending",
    "enable_parallelism": "sanakit.sequence_parallel(network) is a context for drawing; training "
    "has strategy=fsdp",
    "enable_cache": "steps are not skipped; fewer num_inference_steps is what costs less",
    "register_for_auto_class": "code of a model is never run",
    "dequantize": "load it again without quantization_config",
    "tiled_encode": "enable_tiling(), then encode",
    "tiled_decode": "enable_tiling(), then decode",
    "blend_h": "tiles are blended, where they are at all, by enable_tiling(exact=False)",
    "blend_v": "tiles are blended, where they are at all, by enable_tiling(exact=False)",
}


@functools.cache
def say_once(note: str) -> None:
    """Log a warning, the first time in this process."""
    logger.warning(note)


class Needless:
    """A published switch that changes nothing here: it is taken, and says so once."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, network: object, owner: type | None = None) -> Callable[..., None]:
        """The switch, which takes whatever the published one takes."""

        def switch(*given: Any, **named: Any) -> None:
            say_once(f"{self.name} changes nothing here: {self.reason}")

        return switch


class PublishedNetwork(nn.Module):
    """Sizes, dtype, recomputation, compilation; switches that change nothing; what is not here."""

    config: Any
    # Read by accelerate, PEFT and training scripts.
    _supports_gradient_checkpointing: ClassVar[bool] = False
    _keep_in_fp32_modules: ClassVar[list[str] | None] = None
    _no_split_modules: ClassVar[list[str] | None] = None

    def __getattr__(self, name: str) -> Any:
        if name in INSTEAD:
            raise AttributeError(f"{type(self).__name__} has no {name}. Instead: {INSTEAD[name]}")
        return super().__getattr__(name)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights that are not quantized."""
        return next(p.dtype for p in self.parameters() if p.is_floating_point())

    @property
    def device(self) -> torch.device:
        """Where the first weights are."""
        return next(self.parameters()).device

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers the weights are; these networks have no token embeddings to exclude."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of the weights, with those of the buffers unless told otherwise."""
        held = [*self.parameters(), *(self.buffers() if return_buffers else ())]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)

    def register_to_config(self, **fields: Any) -> None:
        """Change fields of the config, which is exchanged as a whole; no layer is built anew.

        Raises:
            ConfigError: for a field that it does not have, or a value that it refuses.
        """
        for name in fields:
            if name not in self.config:
                raise ConfigError(
                    f"{type(self.config).__name__} has no field {name!r}: a config tells what a "
                    "network is built of",
                    hint=did_you_mean(name, config_to_dict(self.config)),
                )
        self.config = replace(self.config, **fields)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether blocks are recomputed in the backward pass."""
        return bool(vars(self).get("gradient_checkpointing", False))

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Any = None) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations.

        Raises:
            ConfigError: a network that has nothing to recompute, or another way of doing it.
        """
        if not self._supports_gradient_checkpointing:
            raise ConfigError(f"{type(self).__name__} does not support gradient checkpointing")
        if gradient_checkpointing_func is not None:
            raise ConfigError(
                "gradient_checkpointing_func: blocks are recomputed in one way", hint="leave it out"
            )
        self.gradient_checkpointing = True

    def disable_gradient_checkpointing(self) -> None:
        """Undo :meth:`enable_gradient_checkpointing`."""
        if self._supports_gradient_checkpointing:
            self.gradient_checkpointing = False

    def compile_repeated_blocks(self, *given: Any, **named: Any) -> None:
        """Compile each block in place: all are alike, so that one compilation serves them.

        Raises:
            ConfigError: a network that is not a stack of one kind of block.
        """
        if not isinstance(blocks := getattr(self, "transformer_blocks", None), nn.ModuleList):
            raise ConfigError(
                f"{type(self).__name__} has no repeated blocks", hint="compile it as a whole"
            )
        for block in blocks:
            block.compile(*given, **named)


for _name, _reason in NEEDLESS.items():
    _switch = Needless(_reason)
    _switch.__set_name__(PublishedNetwork, _name)
    setattr(PublishedNetwork, _name, _switch)
