"""Where a published pipeline runs, and published switches that change nothing here."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from sanakit.errors import ConfigError, refuse_unknown
from sanakit.models.published import say_once
from sanakit.pipeline.components import Components, present
from sanakit.pipeline.pipeline import Pipeline
from sanakit.pipeline.placement import (
    TEXT_ENCODER,
    Networks,
    Visit,
    accelerator,
    cast,
    device_named,
    move,
    release,
)
from sanakit.weights.catalog import find_checkpoint
from sanakit.weights.dtypes import overflowing_of, resolve_dtypes

NOTHING_TO_SLICE = "self-attention is linear, there is no map to slice"
FUSED = "torch's own fused attention is used"
# Published methods that are taken and do nothing, and why; it is said once.
NO_OPS: Mapping[str, str] = {
    "enable_attention_slicing": NOTHING_TO_SLICE,
    "disable_attention_slicing": NOTHING_TO_SLICE,
    "set_attention_slice": NOTHING_TO_SLICE,
    "enable_xformers_memory_efficient_attention": FUSED,
    "disable_xformers_memory_efficient_attention": FUSED,
    "set_use_memory_efficient_attention_xformers": FUSED,
    "upcast_vae": "numbers that are not finite are computed again in a safer dtype by themselves",
    "maybe_free_model_hooks": "a part that is offloaded goes back by itself",
}
SILENT = ("maybe_free_model_hooks",)
# Published names that are not here, and what to write.
INSTEAD: Mapping[str, str] = {
    "cuda": 'pipe.to("cuda")',
    "cpu": 'pipe.to("cpu")',
    "half": "pipe.to(torch.float16), which keeps text encoder and vae in bf16",
    "float": "pipe.to(torch.float32)",
    "bfloat16": "pipe.to(torch.bfloat16)",
    "unet": "pipe.transformer",
    "text_encoder_2": "pipe.text_encoder: these models have one",
    "tokenizer_2": "pipe.tokenizer: these models have one",
    "safety_checker": "these models have none; run one on the pictures",
    "feature_extractor": "these models have none",
    "image_encoder": "these models have none",
    "controlnet": "SanaControlNetPipeline.from_pipe(pipe, controlnet=...)",
    "guider": "pipe(..., guider=sanakit.AdaptiveProjectedGuidance(eta=0)), or SanaPAGPipeline",
    "enable_freeu": "these networks have no skip connections to weigh",
    "disable_freeu": "these networks have no skip connections to weigh",
    "load_textual_inversion": "pipe.load_lora_weights: text encoders here learn no new tokens",
    "load_ip_adapter": "pipe.load_lora_weights: these models read no pictures",
    "set_ip_adapter_scale": "pipe.load_lora_weights: these models read no pictures",
    "fuse_qkv_projections": "torch.compile(pipe.transformer): nothing is gained here by fusing",
    "unfuse_qkv_projections": "nothing: projections are not fused",
    "compile": "pipe.transformer = torch.compile(pipe.transformer)",
    "enable_parallelism": "sanakit.sequence_parallel(pipe.transformer, pipe.vae), a context",
    "decode_latents": "pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample",
    "prepare_extra_step_kwargs": "nothing: step takes no more than velocity, timestep and state",
    "run_safety_checker": "these models have none",
}
S = TypeVar("S", bound="Placing")


class Placing:
    """The methods of a published pipeline that say where and in which dtype it runs."""

    core: Pipeline
    _offload: Callable[[Networks], Visit] | None
    _mapped: bool = False
    _optional_components: ClassVar[list[str]] = []
    model_cpu_offload_seq: ClassVar[str] = "text_encoder->transformer->vae"

    def __getattr__(self, name: str) -> Any:
        """Give a method that does nothing, or say what to write in the place of a published one."""
        kind = type(self).__name__
        if name in NO_OPS:
            return partial(_nothing, name)
        message = f"{kind!r} object has no attribute {name!r}"
        if name in INSTEAD:
            message += f"; write {INSTEAD[name]}"
        elif not name.startswith("__") and (near := difflib.get_close_matches(name, dir(self), 1)):
            message += f"; did you mean {near[0]!r}?"
        raise AttributeError(message)

    def __dir__(self) -> list[str]:
        return sorted([*super().__dir__(), *NO_OPS])

    @refuse_unknown
    def to(
        self: S,
        *where: str | int | torch.device | torch.dtype | None,
        device: str | int | torch.device | None = None,
        dtype: torch.dtype | None = None,
        silence_dtype_warnings: bool = False,
        non_blocking: bool = False,
        allow_unsafe_dtype: bool = False,
    ) -> S:
        """Move all parts to a device, cast them, or both: ``pipe.to("cuda", torch.bfloat16)``.

        A dtype is the transformer's, as in `from_pretrained`. ``silence_dtype_warnings`` and
        ``non_blocking`` are taken: there are no such warnings, and the move is over when this
        returns.

        Raises:
            ConfigError: as `placement.move` and `placement.cast`; one thing named twice.
        """
        for given in where:
            if isinstance(given, torch.dtype):
                if dtype is not None:
                    raise ConfigError(f"to() is given the dtypes {dtype} and {given}")
                dtype = given
            elif given is not None:
                if device is not None:
                    raise ConfigError(f"to() is given the devices {device} and {given}")
                device = given
        components = self.core.components
        if dtype is not None:
            parts = components.networks
            large = overflowing_of(
                text_encoder=parts.get(TEXT_ENCODER), vae=parts.get("autoencoder")
            )
            checkpoint = find_checkpoint(components.name)
            dtypes = resolve_dtypes(
                checkpoint, dtype, allow_unsafe=allow_unsafe_dtype, overflowing=large
            )
            chosen = {TEXT_ENCODER: dtypes.text_encoder, "autoencoder": dtypes.vae}
            chosen["controlnet"] = dtypes.controlnet
            cast(parts, {"transformer": dtypes.transformer, **chosen})
        if device is not None:
            move(components.networks, device_named(device))
            self.core, self._offload = Pipeline(components), None
        return self

    def enable_model_cpu_offload(
        self,
        gpu_id: int | str | torch.device | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        """Keep all parts on the CPU and bring each to a device only for its stage.

        The device is the machine's accelerator, that of number ``gpu_id`` or the one that is named;
        `to` ends it. Errors are those of `offloading.offload_by_stage`.
        """
        from sanakit.pipeline.offloading import offload_by_stage  # noqa: PLC0415 - slow

        self._keepoffloaded(partial(offload_by_stage, device=_device(gpu_id, device)))

    def enable_sequential_cpu_offload(
        self,
        gpu_id: int | str | torch.device | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        """Bring each layer to a device only while it runs: least memory, slowest; `to` ends it.

        Devices as for `enable_model_cpu_offload`. Errors are those of
        `offloading.offload_sequentially`.
        """
        from sanakit.pipeline.offloading import offload_sequentially  # noqa: PLC0415 - slow

        self._keepoffloaded(partial(offload_sequentially, device=_device(gpu_id, device)))

    @refuse_unknown
    def enable_group_offload(
        self,
        onload_device: str | torch.device,
        offload_device: str | torch.device = "cpu",
        offload_type: str = "block_level",
        num_blocks_per_group: int | None = None,
        non_blocking: bool = False,
        use_stream: bool = False,
        record_stream: bool = False,
        low_cpu_mem_usage: bool = False,
        offload_to_disk_path: str | None = None,
        exclude_modules: str | list[str] | None = None,
    ) -> None:
        """Offload by stage for "block_level", by layer for "leaf_level": there are no other groups.

        How blocks are grouped and streamed decides nothing then, and it is said.
        """
        ways = {
            "block_level": self.enable_model_cpu_offload,
            "leaf_level": self.enable_sequential_cpu_offload,
        }
        if offload_type not in ways:
            raise ConfigError(f"offload_type={offload_type!r}", hint=f"one of {', '.join(ways)}")
        if torch.device(offload_device).type != "cpu" or offload_to_disk_path or exclude_modules:
            raise ConfigError(
                "enable_group_offload keeps all parts on the CPU, and nothing on the disk",
                hint="leave offload_device, offload_to_disk_path and exclude_modules out",
            )
        way = ways[offload_type]
        say_once(f"enable_group_offload({offload_type!r}) is {way.__name__} here")
        way(device=onload_device)

    def _keepoffloaded(self, offload: Callable[[Networks], Visit]) -> None:
        """Offload all parts, and those that will be set later."""
        self.core, self._offload = offloaded(self.core.components, offload), offload

    def remove_all_hooks(self) -> None:
        """End all offloading; weights stay on the CPU."""
        release(self.core.components.networks)
        self.core, self._offload = Pipeline(self.core.components), None

    def reset_device_map(self) -> None:
        """Bring all parts that a ``device_map`` placed to the CPU."""
        if self._mapped:
            self.to("cpu")
            self._mapped = False

    @property
    def hf_device_map(self) -> dict[str, str] | None:
        """On which device each part is; None unless it was loaded with a ``device_map``."""
        if not self._mapped:
            return None
        names = {TEXT_ENCODER: "text_encoder", "autoencoder": "vae"}
        return {
            names.get(name, name): str(next(network.parameters()).device)
            for name, network in self.core.components.networks.items()
        }

    @property
    def device(self) -> torch.device:
        """Where the transformer is, or else the first part."""
        return next(self._main_network.parameters()).device

    @property
    def _execution_device(self) -> torch.device:
        """Where the parts run: another device than :attr:`device` under offloading."""
        if self._offload is None:
            return self.device
        there = getattr(self._offload, "keywords", {}).get("device")
        return accelerator() if there is None else torch.device(there)

    @property
    def dtype(self) -> torch.dtype:
        """Of the transformer, or else of the first part."""
        found = (p.dtype for p in self._main_network.parameters() if p.is_floating_point())
        return next(found, torch.float32)

    @property
    def _main_network(self) -> nn.Module:
        networks = self.core.components.networks
        return networks.get("transformer") or next(iter(networks.values()), nn.Linear(1, 1))


def offloaded(components: Components, offload: Callable[[Networks], Visit]) -> Pipeline:
    """Offload components; hooks stay where they are put only on what its user will get."""
    if (encoder := present(components.prompts.text_encoder)) is not None:
        encoder.published()
    return Pipeline(components, visit=offload(components.networks))


def _nothing(name: str, *_: object, **__: object) -> None:
    if name not in SILENT:
        say_once(f"pipe.{name}() does nothing here: {NO_OPS[name]}")


def _device(
    gpu_id: int | str | torch.device | None, device: str | torch.device | None
) -> torch.device | None:
    """The device that is named by its number, by itself, or not at all."""
    if not isinstance(gpu_id, int):
        named = gpu_id if device is None else device
        return None if named is None else device_named(named)
    kind = accelerator() if device is None else torch.device(device)
    if kind.index is not None and kind.index != gpu_id:
        raise ConfigError(f"gpu_id={gpu_id} and device={device!r}", hint="pass one of them")
    return device_named(kind if kind.type == "cpu" else torch.device(kind.type, gpu_id))
