"""Names under which published code loads any pipeline or part; of SANA's there are few."""

from __future__ import annotations

from abc import ABCMeta
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch

from sanakit.errors import ConfigError, refuse_unknown
from sanakit.pipeline.language_models import build_llm
from sanakit.pipeline.load_arguments import one_dtype
from sanakit.pipeline.networks import (
    AutoencoderDC,
    Published,
    SanaControlNetModel,
    SanaTransformer2DModel,
    fill,
)
from sanakit.pipeline.placement import Placed, place_one
from sanakit.pipeline.published.base import PublishedPipeline, published_face
from sanakit.pipeline.published.controlnet import SanaControlNetPipeline
from sanakit.pipeline.published.editing import SanaImg2ImgPipeline, SanaInpaintPipeline
from sanakit.pipeline.published.pag import SanaPAGPipeline
from sanakit.pipeline.published.sana import SanaPipeline
from sanakit.pipeline.published.sprint import SanaSprintImg2ImgPipeline, SanaSprintPipeline
from sanakit.untrusted import shown
from sanakit.weights.catalog import Checkpoint, find_checkpoint
from sanakit.weights.dtypes import overflowing_of, resolve_dtypes
from sanakit.weights.layout import stored_variant
from sanakit.weights.resolve import component_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OWN_KEYWORDS = ("pag_applied_layers",)  # which not all of them have
# By the class that a model's ``model_index.json`` names.
FACES: Mapping[str, type[PublishedPipeline]] = {
    kind.__name__: kind
    for kind in (
        SanaPipeline,
        SanaPAGPipeline,
        SanaControlNetPipeline,
        SanaSprintPipeline,
        SanaSprintImg2ImgPipeline,
    )
}


class AutoPipelineForText2Image:
    """Chooses the pipeline that a model names, and with ``enable_pag`` `SanaPAGPipeline`."""

    faces: ClassVar[Mapping[str, type[PublishedPipeline]]] = MappingProxyType(
        {**FACES, SanaSprintImg2ImgPipeline.__name__: SanaSprintPipeline}
    )

    def __init__(self, *_: object, **__: object) -> None:
        raise ConfigError(
            f"{type(self).__name__} is made by from_pretrained or from_pipe",
            hint="of parts: SanaPipeline(**parts)",
        )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        enable_pag: bool | None = None,
        **loading: Any,
    ) -> PublishedPipeline:
        """Load a model; ``loading`` are the keywords of the class that is chosen.

        ``pag_applied_layers`` among them chooses, too.
        """
        own = {name: loading.pop(name) for name in OWN_KEYWORDS if name in loading}
        if loading.get("controlnet") is not None:
            return SanaControlNetPipeline.from_pretrained(pretrained_model_name_or_path, **loading)
        loaded = PublishedPipeline.from_pretrained(pretrained_model_name_or_path, **loading)
        named = cls.faces.get(loaded.core.components.pipeline_class, SanaPipeline)
        return _face(named, enable_pag, own).from_pipe(loaded, **own)

    @classmethod
    def from_pipe(
        cls, pipeline: PublishedPipeline, *, enable_pag: bool | None = None, **parts: Any
    ) -> PublishedPipeline:
        """Make a pipeline of another's parts, of its own kind unless ``enable_pag`` says."""
        named = cls.faces.get(published_face(pipeline), SanaPipeline)
        if parts.get("controlnet") is not None:
            named = SanaControlNetPipeline
        return _face(named, enable_pag, parts).from_pipe(pipeline, **parts)


def _face(
    named: type[PublishedPipeline], enable_pag: bool | None, keywords: Mapping[str, Any]
) -> type[PublishedPipeline]:
    perturbed = named is SanaPAGPipeline or "pag_applied_layers" in keywords
    chosen = perturbed if enable_pag is None else enable_pag
    if chosen:
        return SanaPAGPipeline
    return SanaPipeline if named is SanaPAGPipeline else named


class _AutoPipelineForEditing:
    """Chooses the pipeline of one task, by what a model says that it is."""

    faces: ClassVar[Mapping[str, type[PublishedPipeline]]]

    def __init__(self, *_: object, **__: object) -> None:
        raise ConfigError(f"{type(self).__name__} is made by from_pretrained or from_pipe")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, **loading: Any
    ) -> PublishedPipeline:
        """Load a model; ``loading`` are the keywords of the class that is chosen.

        Raises:
            ConfigError: a model that has no pipeline of this task.
        """
        loaded = PublishedPipeline.from_pretrained(pretrained_model_name_or_path, **loading)
        return cls._face(loaded.core.components.pipeline_class).from_pipe(loaded)

    @classmethod
    def from_pipe(cls, pipeline: PublishedPipeline, **parts: Any) -> PublishedPipeline:
        """Make a pipeline of another's parts, which both then share; errors as above."""
        return cls._face(published_face(pipeline)).from_pipe(pipeline, **parts)

    @classmethod
    def _face(cls, named: str) -> type[PublishedPipeline]:
        if named in FACES and named not in cls.faces:
            raise ConfigError(
                f"{named} has no counterpart in {cls.__name__}",
                hint=f"that of {', '.join(sorted(cls.faces))} is here",
            )
        return cls.faces.get(named) or cls.faces[SanaPipeline.__name__]


class AutoPipelineForImage2Image(_AutoPipelineForEditing):
    """Chooses the pipeline that draws pictures from pictures."""

    faces = MappingProxyType(
        dict.fromkeys(("SanaPipeline", "SanaPAGPipeline"), SanaImg2ImgPipeline)
        | dict.fromkeys(
            ("SanaSprintPipeline", "SanaSprintImg2ImgPipeline"), SanaSprintImg2ImgPipeline
        )
    )


class AutoPipelineForInpainting(_AutoPipelineForEditing):
    """Chooses the pipeline that draws a part of a picture."""

    faces = MappingProxyType(
        dict.fromkeys(
            (
                "SanaPipeline",
                "SanaPAGPipeline",
                "SanaSprintPipeline",
                "SanaSprintImg2ImgPipeline",
            ),
            SanaInpaintPipeline,
        )
    )


class DiffusionPipeline(AutoPipelineForText2Image, metaclass=ABCMeta):
    """The same by the name of the class that all pipelines of diffusers have in common."""

    faces = FACES


DiffusionPipeline.register(PublishedPipeline)  # isinstance(pipe, DiffusionPipeline)


def load(name_or_folder: str | Path, **loading: Any) -> PublishedPipeline:
    """Load a model as the pipeline that it names: ``load("glyph")("a red apple").images[0]``.

    ``loading`` are the keywords of that pipeline's ``from_pretrained``; errors are its, too.
    """
    return DiffusionPipeline.from_pretrained(name_or_folder, **loading)


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
        kinds = (SanaTransformer2DModel, SanaControlNetModel, AutoencoderDC)
        own = {kind.published_name: kind for kind in kinds}
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
    llm = build_llm(folder, by_transformers=True)
    dtypes = resolve_dtypes(
        checkpoint,
        asked,
        allow_unsafe=allow_unsafe_dtype,
        overflowing=overflowing_of(text_encoder=llm),
    )
    usual = None if checkpoint is None else checkpoint.variant
    fill(
        llm,
        folder,
        dtype=dtypes.text_encoder,
        variant=stored_variant(folder, variant or usual),
        quantization=quantization_config,
        device=place_one(device_map),
    )
    return cast("PreTrainedModel", llm)
