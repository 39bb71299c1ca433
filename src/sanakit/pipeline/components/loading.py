"""A model folder becomes the parts of a pipeline; parts that the caller has are not read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel

from sanakit.errors import ConfigError, MissingModelError
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.text_encoder import TextEncoder
from sanakit.models.transformer import LinearDiT
from sanakit.pipeline.components.language import adopt_llm, build_llm, fill_llm
from sanakit.pipeline.components.types import (
    NETWORKS,
    PARTS,
    Components,
    Habits,
    fingerprint,
    habits_of,
)
from sanakit.pipeline.networks import build, fill
from sanakit.pipeline.placement import Placed, place
from sanakit.pipeline.prompt import PromptEncoder
from sanakit.pipeline.published import AutoencoderDC, SanaTransformer2DModel
from sanakit.pipeline.schedulers import (
    as_scheduler,
    read_scheduler,
    scheduler_from_config,
    scheduler_named,
)
from sanakit.quant.recipe import Recipe, recipe_of
from sanakit.weights.catalog import find_checkpoint
from sanakit.weights.dtypes import Requested, resolve_dtypes
from sanakit.weights.embedded import INDEX, resolve_model
from sanakit.weights.selection import PLAIN
from sanakit.weights.snapshot import stored_variant
from sanakit.weights.store import read_json

M = TypeVar("M", bound=nn.Module)
Variants = dict[str, str | None]
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
            ``tokenizer``, ``scheduler`` (also a solver's name, or a published
                scheduler's config).
        allow_unsafe_dtype: run a dtype that is known to overflow.

    Raises:
        MissingModelError: nothing of that name. WeightsError: files that are damaged or misfit.
        ConfigError: a config that cannot be built, parts of different models, an unsafe dtype.
    """
    given = {part: value for part, value in components.items() if value is not None}
    _check_names("components", given, PARTS)
    recipes = _by_component(quantization, given)
    checkpoint = find_checkpoint(str(name_or_folder))
    # Before gigabytes are fetched for a request that will be refused.
    resolve_dtypes(checkpoint, dtype, allow_unsafe=allow_unsafe_dtype)
    folder = resolve_model(name_or_folder, variant=variant, revision=revision, offline=offline)
    index = read_json(folder / INDEX)
    habits = _habits(folder, index, given.get("scheduler"))
    adopted: TextEncoder | None = None
    if "text_encoder" in given:
        adopted = adopt_llm(given["text_encoder"], allow_unsafe=allow_unsafe_dtype)
    transformer = _given(given, "transformer", LinearDiT)
    transformer = transformer or build(SanaTransformer2DModel, folder / "transformer")
    autoencoder = _given(given, "vae", Autoencoder) or build(AutoencoderDC, folder / "vae")
    llm = build_llm(folder / "text_encoder") if adopted is None else adopted.llm
    _check_fit(transformer, autoencoder, llm, source=str(folder), unsafe=allow_unsafe_dtype)
    networks: dict[str, nn.Module] = {
        "transformer": transformer,
        "text_encoder": llm,
        "vae": autoencoder,
    }
    missing = {part: networks[part] for part in NETWORKS if part not in given}
    variants = _variants(folder, variant, checkpoint.variant if checkpoint else None, missing)
    sizes = {part: 2 * sum(p.numel() for p in each.parameters()) for part, each in missing.items()}
    places = place(sizes, device)
    dtypes = resolve_dtypes(
        checkpoint,
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
            fill_llm(network, folder / part, **settings)
        else:
            fill(network, folder / part, **settings)
    encoder = adopted or TextEncoder(llm)
    for module in (transformer, autoencoder, encoder):
        module.eval()
    as_published = len(missing) == len(NETWORKS) and not recipes
    return Components(
        transformer=transformer,
        autoencoder=autoencoder,
        prompts=PromptEncoder(tokenizer, encoder, instruction=habits.instruction),
        habits=habits,
        name=str(name_or_folder),
        # Pictures of other weights are not pictures of this folder.
        fingerprint=fingerprint(folder) if as_published else "",
    )


def _check_names(what: str, names: Iterable[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(
                f"{what} names {name!r}",
                hint=(f"did you mean {near[0]!r}? " if near else "") + f"known: {', '.join(known)}",
            )


def _by_component(quantization: Any, given: Mapping[str, Any]) -> dict[str, Recipe]:
    """One recipe means the two large networks; parts that were passed are the caller's to make."""
    if quantization is None:
        return {}
    by_part = getattr(quantization, "quant_mapping", quantization)
    if not isinstance(by_part, Mapping) or "quant_method" in by_part:
        recipe = recipe_of(by_part)
        return {part: recipe for part in ("transformer", "text_encoder") if part not in given}
    _check_names("quantization_config", by_part, NETWORKS)
    for part in by_part:
        if part in given:
            raise ConfigError(
                f"quantization_config names {part}, which was passed loaded",
                hint="quantise it when loading it, or let it be loaded here",
            )
    return {part: recipe_of(config) for part, config in by_part.items()}


def _given(given: Mapping[str, Any], part: str, kind: type[M]) -> M | None:
    module = given.get(part)
    if module is not None and not isinstance(module, kind):
        owner = type(module).__module__.partition(".")[0]
        raise ConfigError(
            f"{part} is a {type(module).__name__} of {owner}",
            hint="save it with save_pretrained, and load that folder with the class of sanakit",
        )
    return module


def _habits(folder: Path, index: Mapping[str, Any], scheduler: object | None) -> Habits:
    if scheduler is None:
        return habits_of(read_scheduler(folder / "scheduler"), index)
    if isinstance(scheduler, str):
        shift = read_scheduler(folder / "scheduler").flow_shift
        return habits_of(scheduler_named(scheduler, shift), index)
    if isinstance(scheduler, Mapping):
        return habits_of(scheduler_from_config(scheduler), index)
    return habits_of(as_scheduler(scheduler), index)


def _check_fit(
    transformer: LinearDiT,
    autoencoder: Autoencoder,
    llm: PreTrainedModel,
    *,
    source: str,
    unsafe: bool,
) -> None:
    """Compare what one part gives with what the next takes, before any weights are read."""
    width, taken = llm.config.hidden_size, transformer.config.caption_channels
    if width != taken:
        raise ConfigError(
            f"{source}: the text encoder gives {width} channels, the transformer takes {taken}",
            hint="the two parts are of different models",
        )
    made, taken = transformer.config.output_channels, autoencoder.config.latent_channels
    if transformer.config.in_channels != taken or made % taken:
        raise ConfigError(
            f"{source}: the transformer makes {made} channels, the autoencoder takes {taken}",
            hint="the two parts are of different models",
        )
    if not unsafe and next(autoencoder.parameters()).dtype == torch.float16:
        raise ConfigError(
            "vae in float16 overflows: pictures come out black or grey",
            hint="vae.to(torch.bfloat16); allow_unsafe_dtype=True overrides",
        )


def _variants(
    folder: Path, asked: str | None, usual: str | None, missing: Iterable[str]
) -> Variants:
    """In which files each part is: published models vary only some of them."""
    found = {part: stored_variant(folder / part, asked or usual) for part in missing}
    if asked not in (None, PLAIN) and found and asked not in found.values():
        raise MissingModelError(
            f"{folder}: no part has weights of variant {asked!r}",
            hint="leave variant out, or download that variant",
        )
    return found
