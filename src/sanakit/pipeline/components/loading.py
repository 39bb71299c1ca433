"""A model folder becomes the parts of a pipeline; parts that the caller has are taken as they are.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel

from sanakit.errors import ConfigError, MissingModelError
from sanakit.flow.solvers import SOLVERS
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.transformer import LinearDiT
from sanakit.pipeline.components.language import adopt_llm, build_llm, fill_llm
from sanakit.pipeline.components.types import (
    LM_STEM,
    NETWORKS,
    PARTS,
    SCHEDULER_CONFIG,
    Components,
    Habits,
    fingerprint,
    habits_of,
)
from sanakit.pipeline.networks import build, fill
from sanakit.pipeline.placement import Placed, place
from sanakit.pipeline.prompt import PromptEncoder
from sanakit.pipeline.published import AutoencoderDC, SanaTransformer2DModel
from sanakit.weights.catalog import find_checkpoint
from sanakit.weights.dtypes import Requested, resolve_dtypes
from sanakit.weights.embedded import INDEX, resolve_model
from sanakit.weights.store import STEM, has_variant, read_json

M = TypeVar("M", bound=nn.Module)
STEMS = {"transformer": STEM, "text_encoder": LM_STEM, "vae": STEM}
NONE: Mapping[str, Any] = {}


def load_components(
    name_or_folder: str | Path,
    *,
    dtype: Requested = None,
    device: Placed | None = None,
    variant: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    quantization: Any = None,
    components: Mapping[str, Any] = NONE,
    allow_unsafe_dtype: bool = False,
) -> Components:
    """Load all parts of a model that the caller does not have. All is checked, then read.

    Args:
        name_or_folder: an embedded name, a folder in the published layout, or ``owner/name``.
        dtype: of the transformer, or by component; `resolve_dtypes` says what follows from it.
        device: where parts go, see `placement.place`; parts that are passed stay where they are.
        variant: the ``fp16`` of ``diffusion_pytorch_model.fp16.safetensors``; parts that are not
            published in it are read without.
        revision: of a hub repository.
        offline: fail rather than download.
        quantization: what `recipe_of` reads, for transformer and text encoder, or a mapping from
            components to that.
        components: parts that are not read from disk: ``transformer``, ``vae``, ``text_encoder``,
            ``tokenizer``, ``scheduler`` (a solver's name, or a published scheduler's config).
        allow_unsafe_dtype: run a dtype that is known to overflow.

    Raises:
        MissingModelError: nothing of that name. WeightsError: files that are damaged or misfit.
        ConfigError: a config that cannot be built, parts of different models, an unsafe dtype.
    """
    given = {part: value for part, value in components.items() if value is not None}
    _check_names("components", given, PARTS)
    recipes = _by_component(quantization, given)
    folder = resolve_model(name_or_folder)
    index = read_json(folder / INDEX)
    networks: dict[str, nn.Module] = {
        "transformer": _given(given, "transformer", LinearDiT, "SanaTransformer2DModel")
        or build(SanaTransformer2DModel, folder / "transformer"),
        "vae": _given(given, "vae", Autoencoder, "AutoencoderDC")
        or build(AutoencoderDC, folder / "vae"),
        "text_encoder": adopt_llm(given["text_encoder"], allow_unsafe=allow_unsafe_dtype).llm
        if "text_encoder" in given
        else build_llm(folder / "text_encoder"),
    }
    habits = _habits(folder, index, given.get("scheduler"))
    _check_widths(networks, source=str(folder))
    if not allow_unsafe_dtype and next(networks["vae"].parameters()).dtype == torch.float16:
        raise ConfigError("vae in float16 overflows", hint="vae.to(torch.bfloat16) or float32")
    missing = [part for part in NETWORKS if part not in given]
    variants = _variants(folder, variant, missing)
    places = _places(networks, missing, dtype, device)
    dtypes = resolve_dtypes(
        find_checkpoint(str(name_or_folder)),
        dtype,
        allow_unsafe=allow_unsafe_dtype,
        device=places.get("transformer", torch.device("cpu")),
    )
    tokenizer = given.get("tokenizer")
    if tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(str(folder / "tokenizer"))
    for part in missing:
        settings: dict[str, Any] = {
            "dtype": getattr(dtypes, part),
            "variant": variants[part],
            "quantization": recipes.get(part),
            "device": places[part],
        }
        network: Any = networks[part]
        if part == "text_encoder":
            networks[part] = fill_llm(network, folder / part, **settings).llm
        else:
            networks[part] = fill(network, folder / part, **settings)
    ...
