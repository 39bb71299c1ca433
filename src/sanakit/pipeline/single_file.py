"""One network from one file under the original names, as diffusers loads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor

from sanakit.errors import ConfigError, MissingModelError, refuse_unknown
from sanakit.files import expanded
from sanakit.models.config import AUTOENCODERS, TRANSFORMERS, TransformerConfig
from sanakit.models.published import say_once
from sanakit.models.unfilled import unfilled
from sanakit.pipeline.placement import Placed, place_one
from sanakit.quant.method import method_of
from sanakit.quant.quantize import quantize
from sanakit.weights.catalog import checkpoint_of_file
from sanakit.weights.convert.gguf_file import SUFFIX
from sanakit.weights.convert.original_format import Part, identified, read_original
from sanakit.weights.dtypes import as_trained, resolve_dtypes
from sanakit.weights.layout import CONFIG
from sanakit.weights.resolve import component_folder
from sanakit.weights.store import load_strict

HUB = ("huggingface.co", "hf.co")


@refuse_unknown
def from_single_file(
    kind: Any,
    source: str | Path | Mapping[str, Tensor],
    *,
    config: str | Path | None = None,
    subfolder: str | None = None,
    torch_dtype: torch.dtype | None = None,
    dtype: torch.dtype | None = None,
    quantization_config: Any = None,
    device: Placed | None = None,
    allow_unsafe_dtype: bool = False,
) -> Any:
    """Load a ``.pth`` or ``.safetensors`` of NVlabs' or MIT Han Lab's, a ``.gguf``, or tensors.

    Weights of a ``.gguf`` are made real numbers as they are read, of the dtype that is asked for.

    Args:
        kind: `SanaTransformer2DModel` or `AutoencoderDC`.
        source: a file, its address on the hub where it is in the cache already, or its tensors.
        config: a preset, a ``config.json``, or a model whose ``subfolder`` holds one, in place of
            what the shapes say.
        subfolder: of ``config``, else that of the network.
        torch_dtype: of what is not quantized; None is fp32.
        dtype: the same by its newer name.
        quantization_config: as in ``from_pretrained``; of a ``.gguf`` also the reference's
            ``GGUFQuantizationConfig``, of which the dtype is heeded.
        device: as ``device_map`` there.
        allow_unsafe_dtype: run a dtype that is known to overflow.

    Raises:
        MissingModelError: no such file. WeightsError: a file that is damaged, of another kind of
            network, or does not fit. ConfigError: a config that is not there, an unsafe dtype.
    """
    described = None if config is None else _description(kind, str(config), subfolder)
    path = None if isinstance(source, Mapping) else _file(str(source))
    checkpoint = None if path is None else checkpoint_of_file(path)
    asked_dtype = torch_dtype or dtype
    if path is not None and path.suffix == SUFFIX and _is_of_gguf(quantization_config):
        say_once(f"{path.name} is dequantized as it is read; its blocks are not kept")
        asked_dtype = asked_dtype or getattr(quantization_config, "compute_dtype", None)
        quantization_config = None
    asked = {kind.role: asked_dtype or torch.float32}
    dtypes = resolve_dtypes(checkpoint, asked, allow_unsafe=allow_unsafe_dtype)
    chosen: torch.dtype = getattr(dtypes, kind.role)
    if isinstance(source, Mapping):
        name = "the state dict"
        found = identified(source, source=name, config=described)
    else:
        name = str(path)
        found = read_original(Path(name), config=described, dtype=chosen)
    part = _part(found.parts, kind, name)
    shape = part.config
    if isinstance(shape, TransformerConfig):
        shape = as_trained(shape, checkpoint)
    with unfilled():
        network = kind(replace(shape))
    method = None if quantization_config is None else method_of(quantization_config)
    wanted = part.state if method else {n: t.to(chosen) for n, t in part.state.items()}
    load_strict(network, wanted, source=name)
    network.eval()
    where = place_one(device)
    if method is not None:
        network.requires_grad_(False)
        keep, always = kind.keep, kind.always_keep
        quantize(network, method, keep=keep, always_keep=always, dtype=chosen, device=where)
        network.quantized_with = method
    return network.to(where)


def _is_of_gguf(quantization_config: Any) -> bool:
    return getattr(quantization_config, "quant_method", None) == "gguf"


def _part(parts: tuple[Part, ...], kind: Any, name: str) -> Part:
    for part in parts:
        if part.class_name == kind.published_name:
            return part
    raise ConfigError(
        f"{name} holds a {parts[0].class_name}, not a {kind.published_name}",
        hint=f"{parts[0].class_name}.from_single_file reads it",
    )


def _description(kind: Any, config: str, subfolder: str | None) -> str:
    """A preset's name as it is, else the ``config.json`` that is meant."""
    if Path(config).suffix == ".json" or config in (*TRANSFORMERS, *AUTOENCODERS):
        return config
    own = Path(config) / (subfolder or "") / CONFIG
    if own.is_file():
        return str(own)
    return str(component_folder(config, subfolder or kind.role) / CONFIG)


def _file(source: str) -> Path:
    address = urlsplit(source)
    if address.scheme not in ("http", "https"):
        return expanded(source)
    parts = unquote(address.path).strip("/").split("/")
    if address.hostname not in HUB or len(parts) < 5 or parts[2] not in ("blob", "resolve"):
        raise ConfigError(
            f"{source} is no file of the Hugging Face hub", hint="download it and name the file"
        )
    repository, revision, name = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
    held = try_to_load_from_cache(repository, name, revision=revision)
    if isinstance(held, str):
        return Path(held)
    raise MissingModelError(
        f"{source} is not in the cache",
        hint=f"hf download {repository} {name} --revision {revision}, then name the file; or "
        "from_pretrained of the published folder, whose files are a pickle's equal and checked",
    )
