"""The parts of a pipeline become a model folder in the published layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sanakit.errors import ConfigError
from sanakit.pipeline.components.types import LM_STEM, Components
from sanakit.pipeline.networks import stored_as, write
from sanakit.quant import torchao
from sanakit.weights.atomic import write_atomically
from sanakit.weights.embedded import INDEX
from sanakit.weights.store import MAX_SHARD_BYTES, Storage, write_weights


def save_components(
    components: Components,
    folder: Path,
    *,
    storage: Storage = "as-is",
    variant: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    **notes: str,
) -> None:
    """Write a model in the published layout; the index, by which it is found, goes last.

    ``variant`` goes into the names of the weights files. ``notes`` are kept in the index. Layers
    that bitsandbytes quantised are written as they are.

    Raises:
        ConfigError: for weights of torchao, before anything is written. DataError: the disk.
    """
    transformer, autoencoder = components.transformer, components.autoencoder
    llm = components.prompts.text_encoder.llm
    if any(torchao.is_quantised(module) for module in llm.modules()):
        raise ConfigError(
            "the text encoder holds weights of torchao, which have no published layout",
            hint="save the model before it is quantised, and quantise when loading",
        )
    for network in (transformer, autoencoder):
        stored_as(network)  # refuses before the first file
    folder.mkdir(parents=True, exist_ok=True)
    shape: dict[str, Any] = {"variant": variant, "max_shard_bytes": max_shard_bytes}
    shape["storage"] = storage
    write(transformer, folder / "transformer", published_name="SanaTransformer2DModel", **shape)
    write(autoencoder, folder / "vae", published_name="AutoencoderDC", **shape)
    llm.config.architectures = [type(llm).__name__]
    llm.config.save_pretrained(str(folder / "text_encoder"))
    write_weights(folder / "text_encoder", llm.state_dict(), stem=LM_STEM, **shape)
    components.prompts.tokenizer.save_pretrained(str(folder / "tokenizer"))
    habits = components.habits
    habits.scheduler.save_pretrained(folder / "scheduler")
    instruction = None if habits.instruction is None else list(habits.instruction)
    tokenizer_class = type(components.prompts.tokenizer).__name__
    index: dict[str, Any] = {
        "_class_name": "SanaPipeline",
        "_sanakit": {"instruction": instruction, "guidance_scale": habits.guidance_scale, **notes},
        "scheduler": ["diffusers", type(habits.scheduler).__name__],
        "text_encoder": ["transformers", type(llm).__name__],
        "tokenizer": ["transformers", tokenizer_class],
        "transformer": ["diffusers", "SanaTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderDC"],
    }
    _write_json(folder / INDEX, index)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
