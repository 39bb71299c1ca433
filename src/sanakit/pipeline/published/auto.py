"""Names under which published code loads any pipeline or part; of SANA's there are few."""

from __future__ import annotations

from abc import ABCMeta
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from sanakit.errors import ConfigError, refuse_unknown
from sanakit.pipeline.language_models import build_llm
from sanakit.pipeline.load_arguments import one_dtype
from sanakit.pipeline.networks import (
    AutoencoderDC,
    Published,
    SanaTransformer2DModel,
    fill,
)
from sanakit.pipeline.placement import Placed, place_one
from sanakit.pipeline.published.pag import SanaPAGPipeline
from sanakit.pipeline.published.sana import SanaPipeline
from sanakit.untrusted import shown
from sanakit.weights.catalog import Checkpoint, find_checkpoint
from sanakit.weights.dtypes import resolve_dtypes
from sanakit.weights.layout import stored_variant
from sanakit.weights.resolve import component_folder


class AutoPipelineForText2Image:
    """Chooses between `SanaPipeline` and, with ``enable_pag``, `SanaPAGPipeline`."""

    def __init__(self, *_: object, **__: object) -> None:
        raise ConfigError(
            f"{type(self).__name__} is made by from_pretrained or from_pipe",
            hint="of parts: SanaPipeline(**parts)",
        )

    @staticmethod
    def from_pretrained(
        pretrained_model_name_or_path: str | Path,
        *,
        enable_pag: bool | None = None,
        **loading: Any,
    ) -> SanaPipeline:
        """Load a model; ``loading`` are the keywords of the class that is chosen.

        ``pag_applied_layers`` among them chooses, too.
        """
        chosen = enable_pag if enable_pag is not None else "pag_applied_layers" in loading
        kind = SanaPAGPipeline if chosen else SanaPipeline
        return kind.from_pretrained(pretrained_model_name_or_path, **loading)

    @staticmethod
    def from_pipe(
        pipeline: SanaPipeline, *, enable_pag: bool | None = None, **parts: Any
    ) -> SanaPipeline:
        """Make a pipeline of another's parts, of its own kind unless ``enable_pag`` says."""
        own = isinstance(pipeline, SanaPAGPipeline)
        chosen = enable_pag if enable_pag is not None else own or "pag_applied_layers" in parts
        kind = SanaPAGPipeline if chosen else SanaPipeline
        return kind.from_pipe(pipeline, **parts)


class DiffusionPipeline(AutoPipelineForText2Image, metaclass=ABCMeta):
    """The same by the name of the class that all pipelines of diffusers have in common."""


DiffusionPipeline.register(SanaPipeline)  # isinstance(pipe, DiffusionPipeline)


class AutoModel:
    """Chooses the class of one part of a model by what its ``config.json`` says."""

    def __init__(self, *_: object, **__: object) -> None:
        raise ConfigError(
            "AutoModel is made by from_pretrained",
            hint="with new weights: SanaTransformer2DModel()",
        )

    @staticmethod
    def from_pretrained(
        pretrained_model_name_or_path: str | Path,
        *,
        subfolder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        **loading: Any,
    ) -> Any:
        """Load a transformer, autoencoder or text encoder.

        ``loading`` are the keywords of the class that is chosen; of a text encoder they are those
        of `load_llm`.

        Raises:
            ConfigError: a part that is none of these. MissingModelError: no such model.
        """
        name = pretrained_model_name_or_path
        where: dict[str, Any] = {"revision": revision, "local_files_only": local_files_only}
        config = Published.load_config(name, subfolder=subfolder, **where)
        own = {kind.published_name: kind for kind in (SanaTransformer2DModel, AutoencoderDC)}
        kind = own.get(str(config.get("_class_name")))
        if kind is not None:
            return kind.from_pretrained(name, subfolder=subfolder, **where, **loading)
        folder = component_folder(name, subfolder, revision=revision, offline=local_files_only)
        if "model_type" in config:
            return load_llm(folder, find_checkpoint(str(name)), **loading)
        raise ConfigError(
            f"{folder}: its config names the class {shown(config.get('_class_name'))}",
            hint=f"classes: {', '.join(own)}, and language models of transformers",
        )


@refuse_unknown
def load_llm(
    folder: Path,
    checkpoint: Checkpoint | None = None,
    *,
    torch_dtype: torch.dtype | None = None,
    dtype: torch.dtype | None = None,
    variant: str | None = None,
    quantization_config: Any = None,
    device_map: Placed | None = None,
    allow_unsafe_dtype: bool = False,
) -> PreTrainedModel:
    """Load a language model for a pipeline's ``text_encoder``, frozen; fp32 unless a dtype says."""
    chosen = one_dtype(torch_dtype, dtype)
    if not isinstance(chosen, torch.dtype):
        chosen = torch.float32
    asked = {"text_encoder": chosen}
    dtypes = resolve_dtypes(checkpoint, asked, allow_unsafe=allow_unsafe_dtype)
    llm = build_llm(folder)
    usual = None if checkpoint is None else checkpoint.variant
    fill(
        llm,
        folder,
        dtype=dtypes.text_encoder,
        variant=stored_variant(folder, variant or usual),
        quantization=quantization_config,
        device=place_one(device_map),
    )
    return llm
