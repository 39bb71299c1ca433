"""The networks under the names they are published with: load, build and save one alone."""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MethodType
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from sanakit.errors import (
    ConfigError,
    WeightsError,
    refuse_unknown,
)
from sanakit.files import read_json
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.config import (
    AutoencoderConfig,
    ControlBranchConfig,
    TransformerConfig,
    Wiring,
    config_from_dict,
)
from sanakit.models.controlnet import ControlBranch
from sanakit.models.parts import first_weight, network_in
from sanakit.models.published import PublishedNetwork, say_once
from sanakit.models.tiny_decoder import TinyDecoder
from sanakit.models.transformer import LinearDiT
from sanakit.models.unfilled import unfilled
from sanakit.nn.lora import lora_layers
from sanakit.pipeline.load_arguments import (
    heed_other_arguments,
    one_dtype,
    refuse_pickle_readers,
)
from sanakit.pipeline.placement import MaxMemory, Placed, place_one
from sanakit.quant.method import Method, TorchAo, method_of
from sanakit.quant.quantize import is_quantized, quantize, restore
from sanakit.untrusted import whole_number
from sanakit.weights.catalog import checkpoint_behind, find_checkpoint
from sanakit.weights.dtypes import as_trained, overflowing_of, resolve_dtypes
from sanakit.weights.layout import CONFIG, LM_STEM, PLAIN, STEM, stored_variant
from sanakit.weights.lockfile import asking
from sanakit.weights.resolve import component_folder
from sanakit.weights.store import (
    MAX_SHARD_BYTES,
    Storage,
    load_strict,
    read_config,
    read_quantization,
    read_weights,
    write_config,
    write_weights,
)

N = TypeVar("N", bound="Network")
LM_HEAD = "lm_head.weight"
logger = logging.getLogger(__name__)


class Network(nn.Module):
    """What a network of ours adds to its arithmetic: how it is built, filled and written."""

    config: Any
    config_class: ClassVar[type[Any]]
    published_name: ClassVar[str]
    keep: ClassVar[tuple[str, ...]] = ()
    """Modules that are not quantized unless the caller's own list replaces this one."""
    always_keep: ClassVar[tuple[str, ...]] = ()
    """Modules that are never quantized: the network's dtype and device are read from them."""
    quantized_with: Method | None = None

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


def build(kind: type[N], folder: Path, name: str | Path) -> N:
    """Make the network that ``config.json`` describes on the meta device: no memory is used.

    ``name`` is what its model was asked for by: published configs do not tell all.
    """
    config = read_config(folder, kind.config_class)
    if isinstance(config, TransformerConfig):
        config = as_trained(config, checkpoint_behind(name))
    with unfilled():
        return kind(config)


def fill(
    network: nn.Module,
    folder: Path,
    *,
    dtype: torch.dtype,
    variant: str | None = None,
    quantization: Any = None,
    device: str | torch.device = "cpu",
) -> None:
    """Give a network on the meta device, one of ours or an LLM, its weights, frozen, on ``device``.

    Real tensors are mapped where they have the dtype already, else converted one by one. Linear
    layers are rounded from the dtype they are stored in; a folder whose config says that they are
    quantized already is taken as it is. A language model's head is left aside.
    """
    stored = read_quantization(folder)
    if stored is not None and quantization is not None:
        raise ConfigError(f"{folder}: is quantized already", hint="leave quantization_config out")
    asked = quantization if stored is None else stored
    method = None if asked is None else method_of(asked)
    ours = network if isinstance(network, Network) else None
    state = read_weights(
        folder,
        stem=LM_STEM if ours is None else STEM,
        variant=variant,
        dtype=dtype if method is None else None,
    )
    if ours is None:
        state = {n.removeprefix("model."): tensor for n, tensor in state.items() if n != LM_HEAD}
    filled: list[str] = []
    if method is not None and stored is not None:
        filled = restore(network, state, method, dtype=dtype, device=device, source=str(folder))
        state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    try:
        load_strict(network, state, source=str(folder), filled=filled)
    except WeightsError as error:
        hint = None if ours is None else ours.explain_misfit(state.keys(), ours.config)
        raise WeightsError(error.message, hint=hint or error.hint) from None
    del state
    network.eval().requires_grad_(False)
    if method is not None and stored is None:
        keep, always = ((), ()) if ours is None else (ours.keep, ours.always_keep)
        quantize(network, method, keep=keep, always_keep=always, dtype=dtype, device=device)
    if ours is not None:
        ours.quantized_with = method
    elif method is not None and not isinstance(method, TorchAo):
        llm: Any = network
        llm.config.quantization_config = method.to_json()
    nn.Module.to(network, device)  # transformers' own refuses quantized models


def write(
    network: nn.Module,
    folder: Path,
    *,
    published_name: str,
    variant: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    storage: Storage = "as-is",
) -> None:
    """Write config and weights in the published layout, quantized layers as they are."""
    method = stored_as(network)
    write_config(folder, network.config, published_name, quantization=method)
    state = network.state_dict()
    held = lora_layers(network)
    if any(layer.lora_A.keys() - set(layer.merged_adapters) for layer in held.values()):
        logger.warning("LoRA adapters are not written with a model: fuse_lora() puts them into it")
    if held:
        state = {name: tensor for name, tensor in state.items() if ".lora_" not in name}
    write_weights(
        folder,
        state,
        variant=variant,
        max_shard_bytes=max_shard_bytes,
        storage=storage,
    )


def stored_as(network: nn.Module) -> Mapping[str, Any] | None:
    """How quantized weights are described on disk; None where they are real."""
    method = getattr(network, "quantized_with", None)
    if method is None:
        return None
    if isinstance(method, TorchAo):
        raise ConfigError(
            "weights of torchao have no published layout",
            hint="save the model before it is quantized, and quantize when loading",
        )
    return method.to_json()


UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def write_no_pickles(safe_serialization: bool) -> None:
    """Say that ``safe_serialization=False`` writes safetensors, too: every reader has them."""
    if not safe_serialization:
        say_once("safe_serialization=False: pickles are not written, these are safetensors")


def bytes_of(size: int | str) -> int:
    """Read a size: a number of bytes, or a text like ``5GB``."""
    found = size
    if isinstance(size, str):
        found = (whole_number(size[:-2]) or 0) * UNITS.get(size[-2:].upper(), 0)
    if not isinstance(found, int) or found < 1:
        raise ConfigError(f"size {size!r} is none", hint="bytes, or text like '500MB' or '5GB'")
    return found


class Saved:
    """`save_pretrained` and `push_to_hub`, of a network or of a whole pipeline."""

    def _write(self, folder: Path, *, variant: str | None, max_shard_bytes: int) -> None:
        raise NotImplementedError

    @refuse_unknown
    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        safe_serialization: bool = True,
        is_main_process: bool = True,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        create_pr: bool = False,
    ) -> None:
        """Write the published layout, as safetensors, which diffusers reads too.

        ``max_shard_size``: bytes, or text like "5GB"; larger weights come in shards with an index.
        A rank that is not ``is_main_process`` writes nothing. With ``push_to_hub`` what was written
        is uploaded, as :meth:`push_to_hub` does; the repository has the folder's name unless
        ``repo_id`` says.

        Raises:
            ConfigError: an unknown keyword, a size that is none, weights of torchao.
        """
        write_no_pickles(safe_serialization)
        size = bytes_of(MAX_SHARD_BYTES if max_shard_size is None else max_shard_size)
        if not is_main_process:
            return
        folder = Path(save_directory)
        self._write(folder, variant=variant, max_shard_bytes=size)
        if push_to_hub:
            from sanakit.weights.hub import upload  # noqa: PLC0415 - slow

            upload(
                folder,
                folder.name if repo_id is None else repo_id,
                message=commit_message or f"Upload {type(self).__name__}",
                private=private,
                token=token,
                as_pull_request=create_pr,
            )

    @refuse_unknown
    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
    ) -> None:
        """Write into a repository of the hub, which is made if it is not there.

        Raises:
            MissingModelError: the hub cannot be reached or refuses.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(
                folder,
                variant=variant,
                safe_serialization=safe_serialization,
                push_to_hub=True,
                repo_id=repo_id,
                commit_message=commit_message,
                private=private,
                token=token,
                create_pr=create_pr,
            )


P = TypeVar("P", bound="Published")


class Published(Saved, PublishedNetwork, Network):
    """`from_pretrained`, `from_config` and `save_pretrained` of one network."""

    role: str

    @classmethod
    def from_pretrained(
        cls: type[P],
        pretrained_model_name_or_path: str | Path,
        *,
        subfolder: str | None = None,
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        variant: str | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        use_safetensors: bool | None = None,
        quantization_config: Any = None,
        device_map: Placed | None = None,
        max_memory: MaxMemory | None = None,
        allow_unsafe_dtype: bool = False,
        **needless: Any,
    ) -> P:
        """Load one network, ready to run and, where it is not quantized, to train.

        Args:
            pretrained_model_name_or_path: a model by name, folder or ``owner/name``; without
                ``subfolder`` also the network's own folder.
            subfolder: ``transformer``, ``controlnet`` or ``vae``; needed where the folder holds a
                whole model.
            torch_dtype: of what is not quantized; None is the checkpoint's own, fp32 for folders.
            dtype: the same by its newer name.
            variant: the ``fp16`` of ``diffusion_pytorch_model.fp16.safetensors``.
            revision: of a hub repository.
            cache_dir: in the place of the Hugging Face cache.
            token: of the hub; None is that of the environment.
            force_download: hash what is there, and fetch again what is damaged.
            local_files_only: fail rather than download.
            use_safetensors: never False: pickles are not read.
            quantization_config: a `BitsAndBytesConfig` or ``TorchAoConfig``, or a short name:
                w8a8, w8a16; bnb-int8, bnb-nf4, bnb-fp4; torchao's int8, int4, fp8.
            device_map: a device, or "auto" or "balanced" for the one with the most free memory.
            max_memory: what weights may take of each device, with "balanced".
            needless: other published arguments, which decide nothing here, or are refused.
            allow_unsafe_dtype: run a dtype that is known to overflow.

        Raises:
            ConfigError: an unknown keyword, an unsafe dtype, a config that cannot be built.
            MissingModelError: no such model. WeightsError: weights that do not fit.
        """
        known = inspect.signature(cls.from_pretrained).parameters
        heed_other_arguments(f"{cls.__name__}.from_pretrained", needless, known)
        refuse_pickle_readers(use_safetensors)
        name = pretrained_model_name_or_path
        chosen = one_dtype(torch_dtype, dtype)
        if isinstance(chosen, torch.dtype):
            chosen = {cls.role: chosen}
        checkpoint = find_checkpoint(str(name))
        resolve_dtypes(checkpoint, chosen, allow_unsafe=allow_unsafe_dtype, overflowing=())
        with asking(cache_dir=cache_dir, token=token, force_download=force_download):
            folder = component_folder(
                name, subfolder, variant=variant, revision=revision, offline=local_files_only
            )
        files = variant
        if variant in (None, PLAIN):
            files = stored_variant(folder, variant or (checkpoint.variant if checkpoint else None))
        network = build(cls, folder, name)
        dtypes = resolve_dtypes(
            checkpoint,
            chosen,
            allow_unsafe=allow_unsafe_dtype,
            overflowing=overflowing_of(vae=network) if cls.role == "vae" else (),
        )
        fill(
            network,
            folder,
            dtype=getattr(dtypes, cls.role),
            variant=files,
            quantization=quantization_config,
            device=place_one(device_map, max_memory),
        )
        if network.quantized_with is None:
            network.requires_grad_(True)
        return network

    @classmethod
    def from_config(cls: type[P], config: Any, **fields: Any) -> P:
        """Build with new random weights, from a config or the content of a ``config.json``.

        ``fields`` take the place of its own.

        Raises:
            ConfigError: for a field that does not exist or a value that cannot be built.
        """
        if not isinstance(config, Mapping):
            raise ConfigError(
                f"config is a {type(config).__name__}",
                hint=f"{cls.__name__}.from_config({cls.__name__}.load_config(FOLDER))",
            )
        return cls(config_from_dict(cls.config_class, {**config, **fields}, source=cls.__name__))

    @classmethod
    @refuse_unknown
    def load_config(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        subfolder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> dict[str, Any]:
        """Read a ``config.json`` as `from_config` takes it; arguments as of `from_pretrained`."""
        name = pretrained_model_name_or_path
        folder = component_folder(name, subfolder, revision=revision, offline=local_files_only)
        return read_json(folder / CONFIG)

    def save_config(self, save_directory: str | Path) -> None:
        """Write ``config.json`` alone."""
        write_config(Path(save_directory), self.config, self.published_name)

    @classmethod
    def from_single_file(
        cls: type[P], pretrained_model_link_or_path_or_dict: Any, **options: Any
    ) -> P:
        """Load a file under the original names; arguments are `single_file.from_single_file`'s."""
        read = importlib.import_module("sanakit.pipeline.single_file").from_single_file
        network: P = read(cls, pretrained_model_link_or_path_or_dict, **options)
        return network

    def _write(self, folder: Path, *, variant: str | None, max_shard_bytes: int) -> None:
        write(
            self,
            folder,
            published_name=self.published_name,
            variant=variant,
            max_shard_bytes=max_shard_bytes,
        )


class OfAdapters:
    """A method that stands in `sanakit.pipeline.adapters`, which drawing does not read."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, network: nn.Module | None, owner: type | None = None) -> Any:
        """The function, or the method of a network."""
        function = getattr(importlib.import_module("sanakit.pipeline.adapters"), self.name)
        return function if network is None else MethodType(function, network)


class Adapted:
    """The methods of a network for its LoRA adapters."""

    load_lora_adapter = OfAdapters("load_lora_adapter")
    save_lora_adapter = OfAdapters("save_lora_adapter")
    add_adapter = OfAdapters("add_adapter")
    set_adapter = OfAdapters("set_adapter")
    set_adapters = OfAdapters("set_adapters")
    active_adapters = OfAdapters("active_adapters")
    enable_adapters = enable_lora = OfAdapters("enable_lora")
    disable_adapters = disable_lora = OfAdapters("disable_lora")
    delete_adapters = OfAdapters("delete_adapters")
    fuse_lora = OfAdapters("fuse_lora")
    unfuse_lora = OfAdapters("unfuse_lora")
    unload_lora = OfAdapters("unload_lora")
    enable_lora_hotswap = OfAdapters("enable_lora_hotswap")


class SanaTransformer2DModel(Adapted, Published, LinearDiT):
    """`LinearDiT` under its published name.

    Quantized, it keeps in full what is small and what all blocks hang on: the timestep and caption
    embedders, 3 percent of the weights, and the last projection.
    """

    config_class = TransformerConfig
    published_name = "SanaTransformer2DModel"
    role = "transformer"
    _supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str] | None] = ["Block", "PatchEmbed"]
    keep = ("time_embed", "caption_projection")
    always_keep = ("proj_out",)

    @classmethod
    def explain_misfit(cls, names: Collection[str], config: TransformerConfig) -> str | None:
        """Name the two slips that are made with configs of one family."""
        normed = any(".norm_q." in name for name in names)
        if normed and config.qk_norm is None:
            return (
                "these are weights of SANA 1.5 or Sprint, the config is of SANA 1.0: it needs "
                '"qk_norm": "rms_norm_across_heads"'
            )
        if config.qk_norm is not None and not normed:
            return "the config is of SANA 1.5 or Sprint, the weights have no q and k norms"
        if any("guidance_embedder" in name for name in names) != config.guidance_embeds:
            return f'"guidance_embeds": {str(not config.guidance_embeds).lower()} fits the weights'
        return None


class SanaControlNetModel(Adapted, Published, ControlBranch):
    """`ControlBranch` under its published name.

    Quantized, it keeps in full what `SanaTransformer2DModel` keeps, and its own projections.
    """

    config_class = ControlBranchConfig
    published_name = "SanaControlNetModel"
    role = "controlnet"
    _supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str] | None] = ["Block", "PatchEmbed"]
    keep = ("time_embed", "caption_projection")
    always_keep = ("input_block", "controlnet_blocks")

    @classmethod
    def from_transformer(
        cls,
        transformer: LinearDiT,
        num_layers: int | None = None,
        *,
        wiring: Wiring = "diffusers",
        load_weights_from_transformer: bool = True,
    ) -> SanaControlNetModel:
        """Make a new branch of a transformer's first blocks: until it learns, it changes nothing.

        Of up to seven blocks unless ``num_layers`` says. Its weights are the transformer's, copied.

        Raises:
            ConfigError: a transformer of SANA 1.5 or Sprint, or a quantized one.
        """
        inner = network_in(transformer, LinearDiT)
        if is_quantized(inner):
            raise ConfigError(
                "a control branch begins as a copy of real weights, these are quantized",
                hint="load the transformer without quantization_config",
            )
        config = ControlBranchConfig.of(inner.config, num_layers=num_layers, wiring=wiring)
        weight = first_weight(inner)
        branch = cls(config).to(device=weight.device, dtype=weight.dtype)
        if load_weights_from_transformer:
            own, state = branch.state_dict(), inner.state_dict()
            copied = {name: state[name] for name in own if name in state}
            branch.load_state_dict(copied, strict=False)
        return branch


class AutoencoderDC(Published, Autoencoder):
    """`Autoencoder` under its published name."""

    config_class = AutoencoderConfig
    published_name = "AutoencoderDC"
    role = "vae"
    always_keep = ("encoder.conv_in", "encoder.conv_out", "decoder.conv_in", "decoder.conv_out")

    def load_decoder(self, name: str | Path, *, local_files_only: bool = False) -> None:
        """Decode with another decoder from now on; arguments are `decoders.load_decoder`'s."""
        from sanakit.pipeline.decoders import load_decoder  # noqa: PLC0415 - few decode with it

        load_decoder(self, name, offline=local_files_only)

    def _write(self, folder: Path, *, variant: str | None, max_shard_bytes: int) -> None:
        if isinstance(self.decoder, TinyDecoder):
            raise ConfigError(
                "an autoencoder with a tiny decoder has no published layout",
                hint="load the autoencoder anew to save it; load_decoder(FOLDER) after loading",
            )
        super()._write(folder, variant=variant, max_shard_bytes=max_shard_bytes)
