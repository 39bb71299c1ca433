"""The parts of a model: loaded from a folder or the hub, checked against each other, saved."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import torch
from torch import nn

from sanakit.errors import ConfigError, MissingModelError, MissingVariantError, did_you_mean
from sanakit.files import expanded, read_json, write_json
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.config import (
    TRANSFORMERS,
    AutoencoderConfig,
    TransformerConfig,
    check_branch,
    check_fit,
)
from sanakit.models.controlnet import ControlBranch
from sanakit.models.parts import network_in, require_network
from sanakit.models.text_encoder import TextEncoder
from sanakit.models.tokenizer import Tokenizer
from sanakit.models.transformer import LinearDiT
from sanakit.nn.int8_convolution import pays
from sanakit.pipeline.language_models import TOKENIZER_CONFIG, build_llm, open_tokenizer
from sanakit.pipeline.networks import (
    AutoencoderDC,
    SanaControlNetModel,
    SanaTransformer2DModel,
    build,
    fill,
    stored_as,
    write,
)
from sanakit.pipeline.placement import TEXT_ENCODER, MaxMemory, Placed, device_named, place
from sanakit.pipeline.prompts import (
    COMPLEX_HUMAN_INSTRUCTION,
    MODEL_DEFAULT,
    Compat,
    PromptCache,
    PromptEncoder,
)
from sanakit.pipeline.schedulers import (
    DPMSolverMultistepScheduler,
    Scheduler,
    SCMScheduler,
    as_scheduler,
    read_scheduler,
    scheduler_from_config,
    scheduler_named,
)
from sanakit.quant.method import Int8, Method, mapping_of, method_of, of_language_model
from sanakit.quant.quantize import (
    cast_real,
    has_torchao,
    is_quantized,
    settle,
)
from sanakit.untrusted import number, shown
from sanakit.weights.catalog import find_checkpoint
from sanakit.weights.dtypes import (
    Requested,
    overflowing_of,
    resolve_dtypes,
    tell_of_overflow,
)
from sanakit.weights.layout import CONFIG, LM_STEM, PLAIN, stored_variant
from sanakit.weights.resolve import INDEX, component_folder, refuse_no_branch, resolve_model
from sanakit.weights.store import (
    MAX_SHARD_BYTES,
    Storage,
    write_weights,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOADED: Any = "loaded"
"""In the place of a part: read it from the model. None means that there is to be none."""
CONTROLNET = "controlnet"
NETWORKS = (CONTROLNET, "text_encoder", "transformer", "vae")
PARTS = ("scheduler", "tokenizer", *NETWORKS)
KNOWN_BEFORE = {"TokenizersBackend": "PreTrainedTokenizerFast"}
"""Classes of transformers 5 by the names that it has had for them since 4."""
logger = logging.getLogger(__name__)
PUBLISHED_SCHEDULER = DPMSolverMultistepScheduler(flow_shift=3.0)


@dataclass(frozen=True, kw_only=True)
class GenerationDefaults:
    """What a model expects of a caller who says nothing; ``_sanakit`` in ``model_index.json``."""

    instruction: tuple[str, ...] | None = COMPLEX_HUMAN_INSTRUCTION
    guidance_scale: float = 4.5
    scheduler: Scheduler = PUBLISHED_SCHEDULER


class Absent:
    """Stands where a caller wants no part: whatever needs the part fails, saying which.

    What is known of it without its weights is in ``known``: a config, say.
    """

    def __init__(self, part: str, **known: Any) -> None:
        self.part = part
        vars(self).update(known)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        self()

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """Say what is missing."""
        raise ConfigError(
            f"this pipeline has no {self.part}: it was made with {self.part}=None",
            hint=f"set pipe.{self.part}, or {WITHOUT[self.part]}",
        )


WITHOUT = {
    "text_encoder": "pass prompt_embeds and, for guidance, negative_prompt_embeds with their masks",
    "tokenizer": "pass prompt_embeds and, for guidance, negative_prompt_embeds with their masks",
    "transformer": "only encode_prompt, with this one",
    "vae": 'ask for output_type="latent"',
}


P = TypeVar("P")


def present(part: P) -> P | None:
    """Give a part, or None where it is absent."""
    return None if isinstance(part, Absent) else part


def published_tokenizer(prompts: PromptEncoder) -> Any:
    """The tokenizer of transformers, which one of ours becomes; None where it is absent."""
    tokenizer = present(prompts.tokenizer)
    return tokenizer.published() if isinstance(tokenizer, Tokenizer) else tokenizer


def require(part: object) -> None:
    """Fail where a part is absent, before any work is done."""
    if isinstance(part, Absent):
        part()


def absent(part: str, **known: Any) -> Any:
    """Stand in for a part of any type."""
    return Absent(part, **known)


@dataclass(frozen=True, kw_only=True)
class Components:
    """The networks of one model, ready to run. Nothing in here changes from call to call.

    A part that is not wanted is `Absent`; most models have no control branch.
    """

    transformer: LinearDiT
    autoencoder: Autoencoder
    prompts: PromptEncoder
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)
    name: str = "unnamed"
    fingerprint: str = ""
    pipeline_class: str = "SanaPipeline"
    """The published pipeline that ``model_index.json`` names for it."""
    controlnet: ControlBranch | None = None

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The parts that hold weights and are there, in the order in which a request runs them."""
        encoder = present(self.prompts.text_encoder)
        networks = {
            TEXT_ENCODER: encoder and encoder.llm,
            CONTROLNET: self.controlnet,
            "transformer": present(self.transformer),
            "autoencoder": present(self.autoencoder),
        }
        return {name: network for name, network in networks.items() if network is not None}


# NVlabs' own config of this model samples at a shift of 4; every converted folder says 3.
_SMALL = TRANSFORMERS["sana-0.6b"]
_SMALL_SHIFT = 4.0
_CONVERTED_SHIFT = 3.0


def scheduler_as(
    defaults: GenerationDefaults, config: TransformerConfig, compat: Compat
) -> Scheduler:
    """Give a model's scheduler: NVlabs samples SANA 1.0 0.6B at 1024 px with a flow shift of 4."""
    scheduler = defaults.scheduler
    small = (
        config.width == _SMALL.width
        and config.sample_size == _SMALL.sample_size
        and config.qk_norm is None
        and not config.guidance_embeds
    )
    if compat == "nvlabs" and small and scheduler.flow_shift == _CONVERTED_SHIFT:
        return scheduler.shifted(_SMALL_SHIFT)
    return scheduler


def read_defaults(folder: Path, scheduler: object | None = None) -> GenerationDefaults:
    """Read the generation defaults of a model.

    ``scheduler`` takes the place of its own: a scheduler, the name of a solver, or the content of
    a published config.
    """
    source = folder / INDEX
    ours = read_json(source).get("_sanakit", {})
    if not isinstance(ours, dict):
        raise ConfigError(f"{source}: _sanakit={shown(ours)} is no object")
    instruction = ours.get("instruction", list(COMPLEX_HUMAN_INSTRUCTION))
    lines = instruction if isinstance(instruction, list) else [instruction]
    if instruction is not None and not all(isinstance(line, str) for line in lines):
        raise ConfigError(f"{source}: instruction={shown(instruction)} is no list of lines")
    if scheduler is None:
        scheduler = read_scheduler(folder / "scheduler")
    elif isinstance(scheduler, str):
        shift = read_scheduler(folder / "scheduler").flow_shift
        scheduler = scheduler_named(scheduler, shift)
    elif isinstance(scheduler, Mapping):
        scheduler = scheduler_from_config(scheduler)
    return GenerationDefaults(
        instruction=None if instruction is None else tuple(lines),
        guidance_scale=number(ours.get("guidance_scale", 4.5), name=f"{source}: guidance_scale"),
        scheduler=as_scheduler(scheduler),
    )


def suited(
    defaults: GenerationDefaults, *, few_steps: bool, source: str | None = None
) -> GenerationDefaults:
    """Give a model the scheduler of its kind, with a word where ``source`` says the other.

    Sprint models have one of few steps; their teachers, which are published beside it, do not.
    """
    if defaults.scheduler.solver.adds_noise == few_steps:
        return defaults
    scheduler = SCMScheduler() if few_steps else PUBLISHED_SCHEDULER
    if source is not None:
        logger.warning(
            "%s: its %s does not sample its transformer, which embeds %s guidance; %s is used",
            source,
            type(defaults.scheduler).__name__,
            "the" if few_steps else "no",
            type(scheduler).__name__,
        )
    return replace(defaults, scheduler=scheduler)


def fingerprint(folder: Path) -> str:
    """Sixteen hex digits that differ between models: size and both ends of every weights file."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*/*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)}:{size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(1 << 20))
            file.seek(max(0, size - (1 << 20)))
            digest.update(file.read())
    return digest.hexdigest()[:16]


def load_prompts(
    source: str | Path,
    *,
    dtype: torch.dtype,
    device: str | torch.device = "cpu",
    instruction: Sequence[str] | None = MODEL_DEFAULT,
    cache: PromptCache | None = None,
) -> PromptEncoder:
    """Load a text encoder with its tokenizer, without the rest of a model.

    ``source`` is a model, or the folder of an LLM that holds its tokenizer too. The instruction is
    the model's own unless another is given; an LLM alone has the published one.
    """
    folder = expanded(source)
    alone = (folder / CONFIG).is_file()
    checkpoint = None if alone else find_checkpoint(str(source))
    if not alone:
        folder = resolve_model(source)
    if instruction is MODEL_DEFAULT:
        instruction = COMPLEX_HUMAN_INSTRUCTION if alone else read_defaults(folder).instruction
    weights = folder if alone else folder / "text_encoder"
    llm = build_llm(weights)
    chosen = resolve_dtypes(
        checkpoint,
        {"text_encoder": dtype},
        device=device,
        overflowing=overflowing_of(text_encoder=llm),
    )
    usual = None if checkpoint is None else checkpoint.variant
    variant = stored_variant(weights, usual)
    fill(llm, weights, dtype=chosen.text_encoder, variant=variant, device=device_named(device))
    tokenizer = open_tokenizer(folder if alone else folder / "tokenizer")
    return PromptEncoder(tokenizer, TextEncoder(llm).eval(), instruction=instruction, cache=cache)


def adopt_llm(given: Any, *, allow_unsafe: bool) -> TextEncoder:
    """Take a text encoder that the caller loaded, in place, and make it safe to run.

    Attention with a softcap is switched from sdpa, which skips it, to eager. Where a quantized
    model's other tensors are fp16 they become bf16: norms and embeddings of these models overflow
    in fp16, it is what loading in 8 bits by the published example gives, and quantized parts are
    not copied into a safer dtype.
    """
    from transformers import PreTrainedModel  # noqa: PLC0415 - slow

    llm = given.published() if isinstance(given, TextEncoder) else given
    if not isinstance(llm, PreTrainedModel):
        raise ConfigError(
            f"text_encoder is a {type(given).__name__}",
            hint="pass a model of transformers, e.g. from AutoModel.from_pretrained",
        )
    config = llm.config
    softcap = getattr(config, "attn_logit_softcapping", None)
    if softcap is not None and config._attn_implementation == "sdpa":
        llm.set_attn_implementation("eager")
    if not allow_unsafe and any(p.dtype == torch.float16 for p in llm.parameters()):
        if is_quantized(llm):
            cast_real(llm, torch.bfloat16)
        elif overflowing_of(text_encoder=llm):
            tell_of_overflow("text_encoder")
    settle(llm)
    return given if isinstance(given, TextEncoder) else TextEncoder(llm)


Variants = dict[str, str | None]
NONE: Mapping[str, Any] = {}


def load_components(
    name_or_folder: str | Path,
    *,
    dtype: Requested = None,
    device: Placed | None = None,
    max_memory: MaxMemory | None = None,
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
        max_memory: what weights may take of each device, see there.
        variant: the ``fp16`` of ``diffusion_pytorch_model.fp16.safetensors``; parts that are not
            published in it are read without.
        revision: of a hub repository.
        offline: fail rather than download.
        quantization: what `method_of` reads, for transformer and text encoder, and with
            ``w8a8`` the autoencoder where that makes it faster; or a mapping from components to
            that.
        components: parts that are not read from disk: ``transformer``, ``vae``, ``text_encoder``,
            ``tokenizer``, ``scheduler`` (also a solver's name, or a published scheduler's
            config), ``controlnet`` (also where one is, as `control_folder` takes it).
        allow_unsafe_dtype: run a dtype that is known to overflow.

    Raises:
        MissingModelError: nothing of that name. WeightsError: files that are damaged or misfit.
        ConfigError: a config that cannot be built, parts of different models, an unsafe dtype.
    """
    given = {part: value for part, value in components.items() if value is not LOADED}
    _check_names("components", given, PARTS)
    methods = _by_component(quantization, given)
    checkpoint = find_checkpoint(str(name_or_folder))
    # Before gigabytes are fetched for a request that will be refused.
    resolve_dtypes(checkpoint, dtype, allow_unsafe=allow_unsafe_dtype, overflowing=())
    folder = resolve_model(name_or_folder, variant=variant, revision=revision, offline=offline)
    defaults = read_defaults(folder, given.get("scheduler"))
    index = read_json(folder / INDEX)
    # A folder may have been saved without a part.
    absentees = {part for part, entry in index.items() if entry == [None, None]}
    if CONTROLNET not in index:
        absentees.add(CONTROLNET)
    given = {part: None for part in PARTS if part in absentees} | given
    folders = {part: folder / part for part in PARTS}
    origins = dict.fromkeys(NETWORKS, name_or_folder)
    if isinstance(given.get(CONTROLNET), str | Path):
        origins[CONTROLNET] = given.pop(CONTROLNET)
        folders[CONTROLNET] = control_folder(
            origins[CONTROLNET], variant=variant, revision=None, offline=offline
        )
    kinds = {
        CONTROLNET: SanaControlNetModel,
        "transformer": SanaTransformer2DModel,
        "vae": AutoencoderDC,
    }
    networks: dict[str, Any] = {part: given[part] for part in NETWORKS if part in given}
    for part in sorted(set(NETWORKS) - networks.keys()):
        kind, inside = kinds.get(part), folders[part]
        if kind is None:
            networks[part] = build_llm(inside, by_transformers=part in methods)
        else:
            networks[part] = build(kind, inside, origins[part])
    encoder = networks["text_encoder"]
    if "text_encoder" in given and encoder is not None:
        encoder = adopt_llm(encoder, allow_unsafe=allow_unsafe_dtype)
    elif encoder is not None:
        encoder = TextEncoder(encoder)
    transformer, autoencoder = networks["transformer"], networks["vae"]
    branch = networks[CONTROLNET]
    check_parts(transformer, autoencoder, encoder, branch, source=str(folder))
    overflowing = overflowing_of(text_encoder=networks["text_encoder"], vae=autoencoder)
    if (
        "vae" in overflowing
        and not allow_unsafe_dtype
        and next(networks["vae"].parameters()).dtype == torch.float16
    ):
        tell_of_overflow("vae")
    missing: dict[str, nn.Module] = {p: networks[p] for p in NETWORKS if p not in given}
    usual = checkpoint.variant if checkpoint else None
    variants = _variants({part: folders[part] for part in missing}, variant, usual, folder)
    sizes = {part: 2 * sum(p.numel() for p in each.parameters()) for part, each in missing.items()}
    places = place(sizes, device, max_memory)
    one = _one_method(quantization)
    if isinstance(one, Int8) and one.kind == "w8a8" and "vae" in missing and pays(places["vae"]):
        methods["vae"] = one
    dtypes = resolve_dtypes(
        checkpoint,
        dtype,
        allow_unsafe=allow_unsafe_dtype,
        device=places.get("transformer", torch.device("cpu")),
        overflowing=[part for part in overflowing if part in missing],
    )
    tokenizer = given.get("tokenizer", LOADED)
    if tokenizer is LOADED:
        tokenizer = open_tokenizer(folder / "tokenizer")
    for part, network in missing.items():
        fill(
            network,
            folders[part],
            dtype=getattr(dtypes, part),
            variant=variants[part],
            quantization=methods.get(part),
            device=places[part],
        )
    for part in (part for part in PARTS if part not in given):
        logger.info("%s read from %s", part, folders[part])
    if given.get("scheduler") is None and transformer is not None:
        few_steps = transformer.config.guidance_embeds
        defaults = suited(defaults, few_steps=few_steps, source=str(folder))
    as_published = {*NETWORKS} - {CONTROLNET} <= missing.keys() and not methods
    made = join(transformer, autoencoder, encoder, tokenizer, defaults, branch)
    return replace(
        made,
        name=str(name_or_folder),
        pipeline_class=str(index.get("_class_name", Components.pipeline_class)),
        # Pictures of other weights are not pictures of this folder.
        fingerprint=fingerprint(folder) if as_published else "",
    )


def control_folder(name: str | Path, **where: Any) -> Path:
    """Where a control branch is: its own folder, or that of a model with one; also on the hub.

    Raises:
        MissingModelError: neither.
    """
    if (expanded(name) / CONFIG).is_file():
        return expanded(name)
    refuse_no_branch(name, "the control branch")
    try:
        return component_folder(name, CONTROLNET, **where)
    except MissingModelError:
        return component_folder(name, None, **where)


def check_parts(
    transformer: Any, vae: Any, text_encoder: TextEncoder | None, controlnet: Any, source: str
) -> None:
    """Refuse networks of another kind, and such as do not fit each other; None fits all."""
    if transformer is not None:
        require_network("transformer", transformer)
    if vae is not None:
        require_network("vae", vae)
    if controlnet is not None:
        require_network(CONTROLNET, controlnet)
        if transformer is not None:
            check_branch(controlnet.config, transformer.config)
    if transformer is not None:
        config: TransformerConfig = transformer.config
        check_fit(
            config,
            text_width=config.caption_channels if text_encoder is None else text_encoder.width,
            latent_channels=config.in_channels if vae is None else vae.config.latent_channels,
            source=source,
        )


def join(
    transformer: LinearDiT | None,
    vae: Autoencoder | None,
    text_encoder: TextEncoder | None,
    tokenizer: Tokenizer | PreTrainedTokenizerBase | None,
    defaults: GenerationDefaults,
    controlnet: ControlBranch | None = None,
) -> Components:
    """Make components of parts that fit each other; None is `Absent`, but for a control branch."""
    for module in (text_encoder, controlnet, vae, transformer):
        if module is not None:
            module.eval()
    if vae is None:
        vae = absent("vae", config=AutoencoderConfig())
    prompts = PromptEncoder(
        absent("tokenizer") if tokenizer is None else tokenizer,
        absent("text_encoder") if text_encoder is None else text_encoder,
        instruction=defaults.instruction,
    )
    return Components(
        transformer=absent("transformer") if transformer is None else transformer,
        autoencoder=vae,
        prompts=prompts,
        defaults=defaults,
        controlnet=controlnet,
    )


def _check_names(what: str, names: Iterable[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(f"{what} names {name!r}", hint=did_you_mean(name, known))


def _one_method(quantization: Any) -> Method | None:
    """The method that is meant for a whole model; None where parts have methods of their own."""
    by_part = isinstance(quantization, Mapping) and "quant_method" not in quantization
    if quantization is None or by_part or hasattr(quantization, "quant_mapping"):
        return None
    return method_of(quantization)


def _by_component(quantization: Any, given: Mapping[str, Any]) -> dict[str, Method]:
    """One method means the two large networks; parts that were passed are the caller's to make."""
    if quantization is None:
        return {}
    whole = hasattr(quantization, "quant_mapping")
    by_part = mapping_of(quantization) if whole else quantization
    method = _one_method(quantization)
    if method is not None:
        methods = {"transformer": method, "text_encoder": of_language_model(method)}
        return {part: each for part, each in methods.items() if part not in given}
    _check_names("quantization_config", by_part, NETWORKS)
    for part in by_part:
        if part in given:
            raise ConfigError(
                f"quantization_config names {part}, which was passed loaded",
                hint="quantize it when loading it, or let it be loaded here",
            )
    return {part: method_of(config) for part, config in by_part.items()}


def _variants(
    folders: Mapping[str, Path], asked: str | None, usual: str | None, source: Path
) -> Variants:
    """In which files each part is: published models vary only some of them."""
    found = {part: stored_variant(inside, asked or usual) for part, inside in folders.items()}
    if asked not in (None, PLAIN) and found and asked not in found.values():
        raise MissingVariantError(
            f"{source}: no part has weights of variant {asked!r}",
            hint="leave variant out, or download that variant",
        )
    return found


def assemble(
    *,
    tokenizer: Tokenizer | PreTrainedTokenizerBase | None = LOADED,
    text_encoder: PreTrainedModel | TextEncoder | None = LOADED,
    vae: Autoencoder | None = LOADED,
    transformer: LinearDiT | None = LOADED,
    controlnet: ControlBranch | None = None,
) -> Components:
    """Make components of loaded parts, without copying any; a part may be None, but is to be named.

    Generation defaults come with a transformer that was in a pipeline before; any other gets the
    published ones.
    """
    given = {
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "vae": vae,
        "transformer": transformer,
    }
    missing = [name for name, part in given.items() if part is LOADED]
    if missing:
        raise ConfigError(
            f"the pipeline lacks {', '.join(missing)}",
            hint="pass tokenizer, text_encoder, vae and transformer, or use from_pretrained",
        )
    encoder = text_encoder
    if encoder is not None and not isinstance(encoder, TextEncoder):
        encoder = TextEncoder(encoder)
    check_parts(transformer, vae, encoder, controlnet, source="the pipeline")
    defaults = None
    if transformer is not None:
        defaults = network_in(transformer, LinearDiT).generation_defaults
    if not isinstance(defaults, GenerationDefaults):
        few_steps = transformer is not None and transformer.config.guidance_embeds
        defaults = suited(GenerationDefaults(), few_steps=few_steps)
    return join(transformer, vae, encoder, tokenizer, defaults, controlnet)


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

    ``variant`` goes into the names of the weights files. ``notes`` are kept in the index. Int8
    layers and those of bitsandbytes are written as they are.

    Raises:
        ConfigError: for weights of torchao, before anything is written. DataError: the disk.
    """
    networks = components.networks
    llm: Any = networks.get(TEXT_ENCODER)
    if llm is not None:
        llm = components.prompts.text_encoder.published()
    kinds: dict[str, type[nn.Module]] = {
        CONTROLNET: ControlBranch,
        "transformer": LinearDiT,
        "autoencoder": Autoencoder,
    }
    ours = {name: network_in(networks[name], kinds[name]) for name in kinds if name in networks}
    transformer, autoencoder = ours.get("transformer"), ours.get("autoencoder")
    branch = ours.get(CONTROLNET)
    tokenizer = published_tokenizer(components.prompts)
    if llm is not None and has_torchao(llm):
        raise ConfigError(
            "the text encoder holds weights of torchao, which have no published layout",
            hint="save the model before it is quantized, and quantize when loading",
        )
    for network in ours.values():
        stored_as(network)  # refuses before the first file
    folder.mkdir(parents=True, exist_ok=True)
    shape: dict[str, Any] = {"variant": variant, "max_shard_bytes": max_shard_bytes}
    shape["storage"] = storage
    if transformer is not None:
        write(transformer, folder / "transformer", published_name="SanaTransformer2DModel", **shape)
    if branch is not None:
        write(branch, folder / CONTROLNET, published_name="SanaControlNetModel", **shape)
    if autoencoder is not None:
        write(autoencoder, folder / "vae", published_name="AutoencoderDC", **shape)
    if llm is not None:
        llm.config.architectures = [type(llm).__name__]
        llm.config.save_pretrained(str(folder / "text_encoder"))
        write_weights(folder / "text_encoder", llm.state_dict(), stem=LM_STEM, **shape)
    tokenizer_class = type(tokenizer).__name__
    if tokenizer is not None:
        tokenizer_class = KNOWN_BEFORE.get(tokenizer_class, tokenizer_class)
        tokenizer.save_pretrained(str(folder / "tokenizer"))
        settings = folder / "tokenizer" / TOKENIZER_CONFIG
        write_json(settings, {**read_json(settings), "tokenizer_class": tokenizer_class})
    defaults = components.defaults
    defaults.scheduler.save_pretrained(folder / "scheduler")
    instruction = None if defaults.instruction is None else list(defaults.instruction)

    def entry(library: str, name: str, part: object) -> list[str | None]:
        return [None, None] if part is None else [library, name]

    index: dict[str, Any] = {
        "_class_name": components.pipeline_class,
        "_sanakit": {
            "instruction": instruction,
            "guidance_scale": defaults.guidance_scale,
            **notes,
        },
        "scheduler": ["diffusers", type(defaults.scheduler).__name__],
        "text_encoder": entry("transformers", type(llm).__name__, llm),
        "tokenizer": entry("transformers", tokenizer_class, tokenizer),
        "transformer": entry("diffusers", "SanaTransformer2DModel", transformer),
        "vae": entry("diffusers", "AutoencoderDC", autoencoder),
    }
    if branch is not None:
        index[CONTROLNET] = entry("diffusers", "SanaControlNetModel", branch)
    write_json(folder / INDEX, index)
