"""A diffusion run put together: the parts it begins with, what of them learns, and its export."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sanakit.data.loader.folders import contents_of, open_folder
from sanakit.errors import ConfigError, DataError
from sanakit.files import expanded
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.config import TRANSFORMERS, TransformerConfig, check_fit
from sanakit.models.init import init_transformer
from sanakit.models.transformer import LinearDiT
from sanakit.models.unfilled import unfilled
from sanakit.pipeline.components import (
    Components,
    GenerationDefaults,
    load_prompts,
    read_defaults,
    save_components,
    suited,
)
from sanakit.pipeline.networks import AutoencoderDC, SanaTransformer2DModel
from sanakit.pipeline.prompts import PromptEncoder
from sanakit.train.checkpoint import newest_weights
from sanakit.train.config import LoopConfig
from sanakit.train.distributed.network import DTYPES
from sanakit.train.recipes.diffusion import (
    DiffusionObjective,
    DiffusionRecipe,
    FlowObjective,
    InterpolationScale,
    usual_loop,
)
from sanakit.train.recipes.encoders import Encoders
from sanakit.train.recipes.lora import adapter_pairs, add_adapters, merge_pairs
from sanakit.train.recipes.shard_dataset import (
    ShardDataset,
    States,
    cached_of,
    resolution_of,
    shards_of,
)
from sanakit.train.runs.run_config import RunConfig, is_run, lasting, load_run, read_run
from sanakit.train.sample_schedule import SampleSchedule
from sanakit.weights.layout import CONFIG, INDEX
from sanakit.weights.lora import LORA_FILE, LoraPair, write_lora
from sanakit.weights.resolve import resolve_model
from sanakit.weights.store import Storage, load_strict, read_config

WHAT, REWARD = "diffusion", "reward"
Report = Callable[[str], object]
LARGE_GRID = 64
"""Side of the latents of 2048 px: from here on published models have positional encoding."""


@dataclass(frozen=True, kw_only=True)
class DiffusionData:
    """The arguments of a run; ``resolution`` and ``index`` are found out when it begins."""

    data: str
    start: str | None = None
    """A model, or a run, to begin with."""
    preset: str | None = None
    """A shape to begin with at random; the other parts are those of ``start``."""
    autoencoder: str | None = None
    text_encoder: str | None = None
    """Folders of parts that take the place of those of ``start``."""
    instruction: str | None = None
    """What captions are read behind, and prompts by the exported model; "" is nothing."""
    tune_text: bool = False
    """The text encoder learns along."""
    lora: int | None = None
    held: str | None = None
    prior: str | None = None
    """A set of what must not be forgotten."""
    prompts: Sequence[str] = ()
    states: States = "auto"
    workers: int = 0
    resolution: int | None = None
    """About the side of the pictures, px."""
    index: str | None = None
    """Identifies the shards."""
    prior_index: str | None = None


def start_components(
    data: DiffusionData,
    objective: FlowObjective,
    *,
    device: str = "cpu",
    report: Report = print,
) -> Components:
    """The parts as they are before the first step, on the CPU.

    The transformer is fp32, its weights no file's; from a preset they hold anything. The text
    encoder is bf16 where it will run on a GPU.

    Raises:
        ConfigError, MissingModelError, WeightsError: parts are missing or do not fit.
    """
    parts: Components | None = None
    for run, config in reversed(_runs_before(data)):
        theirs, quiet = DiffusionData(**config.data), lambda line: None
        parts = _begun(parts, theirs, config.objective, device=device, report=quiet)
        _learned(parts, run, config)
    return _begun(parts, data, objective, device=device, report=report)


def components_of_run(run: Path, *, device: str = "cpu") -> Components:
    """The parts that a run has come to; a LoRA is merged into the weights.

    Raises:
        DataError: no run of diffusion. MissingModelError: it has no checkpoint yet.
        ConfigError, WeightsError: as :func:`start_components`.
    """
    config = diffusion_run(run)
    data, objective = DiffusionData(**config.data), config.objective
    parts = start_components(data, objective, device=device, report=lambda line: None)
    _learned(parts, run, config)
    return replace(parts, name=run.name)


def _runs_before(data: DiffusionData) -> list[tuple[Path, RunConfig]]:
    """The runs that led to what a run begins with, the last one first.

    A run that has written its model into its folder is a model, and leads no further.
    """
    found: list[tuple[Path, RunConfig]] = []
    start = data.start
    while start is not None and is_run(start) and not (expanded(start) / INDEX).is_file():
        found.append((expanded(start), diffusion_run(start)))
        start = found[-1][1].data.get("start")
    return found


def _arguments(data: DiffusionData) -> list[DiffusionData]:
    """The arguments of a run, and of those that led to it."""
    return [data, *(DiffusionData(**config.data) for _, config in _runs_before(data))]


def _begun(
    parts: Components | None,
    data: DiffusionData,
    objective: FlowObjective,
    *,
    device: str,
    report: Report,
) -> Components:
    """What a run begins with: ``parts`` of the run before, or those of a model."""
    start = data.start
    if parts is not None:
        defaults = parts.defaults
    elif start is not None:
        # Of a teacher too, whose folder may have the scheduler of the model it taught.
        defaults = suited(read_defaults(resolve_model(start)), few_steps=False)
    else:
        defaults = GenerationDefaults()
    if objective.flow_shift is not None:
        defaults = replace(defaults, scheduler=defaults.scheduler.shifted(objective.flow_shift))
    if data.instruction is not None:
        lines = tuple(data.instruction.split("\n")) if data.instruction else None
        defaults = replace(defaults, instruction=lines)
    prompts = _prompts(data, parts, device, defaults.instruction)
    autoencoder = _autoencoder(data, parts)
    channels, width = autoencoder.config.latent_channels, prompts.text_encoder.width
    before: LinearDiT | None = None
    if data.preset is not None:
        config = replace(
            TRANSFORMERS[data.preset],
            in_channels=channels,
            out_channels=channels,
            caption_channels=width,
        )
    else:
        before = _transformer(start) if parts is None else parts.transformer
        config = before.config
    if config.guidance_embeds:
        raise ConfigError(
            "this model embeds its guidance scale: it was distilled, with another loss",
            hint="fine-tune the model that it was distilled from",
        )
    check_fit(config, text_width=width, latent_channels=channels, source=start or "this run")
    factor = autoencoder.config.spatial_factor
    assert data.resolution is not None
    scale: InterpolationScale = "keep"
    if isinstance(objective, DiffusionObjective):
        scale = objective.interpolation_scale
    wanted = at_resolution(config, data.resolution // factor, scale)
    if before is not None and wanted != config:
        report(
            f"the model draws {config.sample_size * factor} px "
            f"(positions {config.interpolation_scale}), this run goes to "
            f"{wanted.sample_size * factor} px (positions {wanted.interpolation_scale})"
        )
    with unfilled():
        transformer = SanaTransformer2DModel(wanted)
    if before is None:
        transformer = transformer.to_empty(device="cpu")
    else:
        # Copies: weights that were read may lie in their file.
        own = {name: tensor.float().clone() for name, tensor in before.state_dict().items()}
        load_strict(transformer, own, source=str(start))
    return Components(
        transformer=transformer, autoencoder=autoencoder, prompts=prompts, defaults=defaults
    )


def at_resolution(
    config: TransformerConfig, side: int, scale: InterpolationScale
) -> TransformerConfig:
    """The shape of the next stage: ``side`` latents, and positions where they are asked for.

    Positional encoding has no weights, so it can be added late (SANA, arXiv 2410.10629): 2048 px
    have scale 1, 4096 px scale 2.
    """
    if scale == "keep":
        scale = config.interpolation_scale
    elif scale == "auto":
        scale = config.interpolation_scale
        if side >= LARGE_GRID and (scale is None or side != config.sample_size):
            scale = side / LARGE_GRID
    assert not isinstance(scale, str)
    return replace(config, sample_size=side, interpolation_scale=scale)


def lora_of_run(run: Path) -> dict[str, LoraPair]:
    """The adapters of a run, by the layer that they change.

    Raises:
        ConfigError: the run trains all weights. Others as :func:`components_of_run`.
    """
    objective = diffusion_run(run).objective
    if not objective.lora_rank:
        raise ConfigError(
            f"{run} trained all weights, and no LoRA",
            hint=f"export it: sanakit train export {run} --out models/mine",
        )
    return adapter_pairs(newest_weights(run), alpha=objective.lora_alpha)


def diffusion_run(run: str | Path) -> RunConfig:
    """What a run was started with; one with a reward counts as a LoRA that was trained.

    Raises:
        ConfigError: it is no run of diffusion. DataError: as `load_run`.
    """
    value = read_run(run)
    if value["what"] != REWARD:
        return load_run(run, WHAT, DiffusionObjective)
    lora = {name: found for name, found in value["objective"].items() if name.startswith("lora_")}
    return RunConfig(
        what=WHAT,
        data={name: value["data"].get(name) for name in ("data", "start", "resolution")},
        objective=DiffusionObjective(interpolation_scale="keep", **lora),
        loop=LoopConfig(**value["loop"]),
    )


def root_model(data: DiffusionData) -> str | None:
    """The model whose autoencoder and text encoder a run uses; None if they are of two."""
    arguments = _arguments(data)
    mixed = any(each.autoencoder or each.text_encoder for each in arguments)
    return None if mixed else arguments[-1].start


def begun_with_one_model(run: Path) -> str | None:
    """The model that all parts of a run are of; None if it began with several, or with a run."""
    data = DiffusionData(**diffusion_run(run).data)
    start = root_model(data)
    return start if start == data.start and not _reads_otherwise(data) else None


def _reads_otherwise(data: DiffusionData) -> bool:
    """Whether captions have other states than those of the model that it all began with."""
    return any(each.instruction is not None or each.tune_text for each in _arguments(data))


def _learned(parts: Components, run: Path, config: RunConfig) -> None:
    """Give the parts what a run has learned."""
    if config.objective.lora_rank:
        merge_pairs(parts.transformer, lora_of_run(run))
        return
    module: nn.Module = parts.transformer
    if config.data.get("tune_text"):
        llm = parts.prompts.text_encoder.llm
        module = nn.ModuleDict({"transformer": module, "text_encoder": llm})
    load_strict(module, newest_weights(run), source=str(run))


def _transformer(start: str | None) -> LinearDiT:
    assert start is not None
    return SanaTransformer2DModel.from_pretrained(
        start, subfolder="transformer", torch_dtype=torch.float32
    )


def _autoencoder(data: DiffusionData, parts: Components | None) -> Autoencoder:
    given = data.autoencoder
    if given is None and parts is not None:
        return parts.autoencoder
    source = given or data.start
    if source is None:
        raise _missing_part("autoencoder")
    alone = (expanded(source) / CONFIG).is_file()
    return AutoencoderDC.from_pretrained(
        source, subfolder=None if alone else "vae", torch_dtype=torch.float32
    ).requires_grad_(False)


def _prompts(
    data: DiffusionData,
    parts: Components | None,
    device: str,
    instruction: Sequence[str] | None,
) -> PromptEncoder:
    given = data.text_encoder
    if given is None and parts is not None:
        own = parts.prompts
        return PromptEncoder(own.tokenizer, own.text_encoder, instruction=instruction)
    source = given or data.start
    if source is None:
        raise _missing_part("text encoder")
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    dtype = torch.bfloat16 if on_gpu else torch.float32
    return load_prompts(source, dtype=dtype, instruction=instruction)


def _missing_part(name: str) -> ConfigError:
    return ConfigError(
        f"--preset names the transformer's shape alone, and there is no {name}",
        hint="name a model for the other parts: --from MODEL; or --autoencoder FOLDER and "
        "--text-encoder FOLDER",
    )


SHOWN = 3
"""Captions of the set that the validation grid shows where no prompts are given."""


def new_run(typed: Mapping[str, Any], pairs: Sequence[str] = ()) -> RunConfig:
    """A run from arguments by name, None for those not given, and ``key=value`` settings.

    Raises:
        ConfigError: nothing to begin with, or settings that break a rule.
        MissingModelError: no such model.
    """
    given = lasting(typed)
    if given.get("data") is None:
        raise ConfigError(
            "--data is missing", hint="sanakit data build my-pictures --out my-set makes one"
        )
    data = DiffusionData(**given)
    if data.preset is None and data.start is None:
        raise ConfigError(
            "nothing to begin with", hint="--from glyph, --from MODEL, or --preset sana-0.6b"
        )
    if data.preset is not None and data.preset not in TRANSFORMERS:
        raise ConfigError(
            f"no preset {data.preset!r}", hint=f"there are: {', '.join(TRANSFORMERS)}"
        )
    shards_of(data.data)  # before a model is fetched
    width, scratch = width_of(data), data.preset is not None
    run = RunConfig(
        what=WHAT,
        data=given,
        objective=DiffusionObjective(lora_rank=data.lora or 0),
        loop=usual_loop(width=width, lora=False, scratch=scratch),
    ).with_settings(pairs)
    if not run.objective.lora_rank:
        return run
    loop = usual_loop(width=width, lora=True, scratch=scratch)
    return replace(run, loop=loop).with_settings(pairs)


def build(run: RunConfig, *, report: Report = print) -> tuple[DiffusionRecipe, RunConfig]:
    """Load, check and put together; the run comes back with what was found out of its data.

    Raises:
        ConfigError: settings or parts that do not go together. MissingModelError: no such model.
        DataError: no shards, or others than when the run began. WeightsError: damaged weights.
    """
    data, objective, loop = DiffusionData(**run.data), run.objective, run.loop
    shards = shards_of(data.data)
    held = None if data.held is None else shards_of(data.held)
    prior = None if data.prior is None else shards_of(data.prior)
    data = replace(data, resolution=resolution_of(shards))
    # What learns is fp32 on a GPU, too.
    device = "cpu" if data.tune_text else loop.device
    parts = start_components(data, objective, device=device, report=report)
    transformer = parts.transformer
    multiple = parts.autoencoder.config.spatial_factor * transformer.config.patch_size
    for each, typed in ((shards, data.data), (held, data.held), (prior, data.prior)):
        if each is not None:
            check_sizes(each, multiple, f"sanakit data build {typed} --model {data.start}")
    if prior is None and objective.prior_weight != 1:
        raise ConfigError(
            f"prior_weight={objective.prior_weight} weighs nothing", hint="name a set: --prior SET"
        )
    if data.tune_text and objective.lora_rank:
        raise ConfigError(
            "--tune-text with a LoRA: its file holds changes of the transformer alone",
            hint="leave one of them out",
        )
    if objective.base_dtype != "float32" and loop.compute_dtype == "float32":
        raise ConfigError(
            f"base_dtype={objective.base_dtype} under compute_dtype=float32: products would mix "
            "both",
            hint="leave compute_dtype at bfloat16",
        )
    otherwise = _reads_otherwise(data)
    if otherwise and data.states == "cached":
        raise ConfigError(
            "--states cached: captions have other states by --instruction or --tune-text",
            hint="--states auto reads cached latents alone",
        )

    def dataset(shards: str) -> ShardDataset:
        latents, text = cached_of(shards, root_model(data), data.states)
        text = None if otherwise else text
        for name, found in (("latents", latents), ("text states", text)):
            if found is not None:
                report(f"{name}: read from {found}")
        return ShardDataset(
            shards=shards,
            captions=objective.choice(),
            latents=latents,
            text=text,
            workers=data.workers,
        )

    pictures, others = dataset(shards), None if prior is None else dataset(prior)
    if others is not None:
        assert data.prior is not None
        prior_index = same_shards(others, loop, data.prior, data.prior_index, report)
        data = replace(data, prior_index=prior_index)
    data = replace(
        data,
        index=same_shards(pictures, loop, data.data, data.index, report),
        prompts=tuple(data.prompts) or captions_of(pictures, objective),
    )
    if data.tune_text:
        for weight in parts.prompts.text_encoder.llm.parameters():
            weight.data = weight.data.float().clone()  # not what may lie in a file
    if data.preset is not None:
        init_transformer(transformer, generator=torch.Generator().manual_seed(loop.seed))
        nn.init.constant_(transformer.caption_norm.weight, objective.caption_gain)
    _choose_trained(transformer, objective, seed=loop.seed, report=report)
    recipe = DiffusionRecipe(
        transformer,
        Encoders(parts.autoencoder, parts.prompts, max_tokens=objective.max_tokens),
        parts.defaults,
        pictures,
        objective,
        held=None if held is None else ShardDataset(shards=held, workers=data.workers),
        prior=others,
        prompts=data.prompts,
        tune_text=data.tune_text,
    )
    return recipe, replace(run, data=asdict(data))


def width_of(data: DiffusionData) -> int:
    """Of the transformer that a run begins with."""
    arguments = _arguments(data)
    presets = [each.preset for each in arguments if each.preset is not None]
    if presets:
        return TRANSFORMERS[presets[0]].width
    assert arguments[-1].start is not None
    return read_config(resolve_model(arguments[-1].start) / "transformer", TransformerConfig).width


def export_run(run: Path, out: Path, *, storage: Storage = "as-is", merged: bool = False) -> Path:
    """Write what a run learned: a model in the published layout, or the file of a LoRA.

    ``merged`` adds a LoRA to the weights and writes the whole model.

    Raises:
        ConfigError: ``merged`` where there is no LoRA, ``storage`` for one, a run that is a model
            by itself. DataError: the disk.
        MissingModelError, WeightsError: as `components_of_run`.
    """
    if (run / INDEX).is_file():
        raise ConfigError(
            f"{run} is a model already", hint=f"sanakit generate PROMPT --model {run}"
        )
    lora = diffusion_run(run).objective.lora_rank > 0
    if merged and not lora:
        raise ConfigError(f"{run} trained all weights: there is nothing to merge")
    if lora and not merged:
        if storage != "as-is":
            raise ConfigError(
                f"--storage {storage} is for whole models", hint="with --merged, or leave it out"
            )
        pairs = lora_of_run(run)
        out.mkdir(parents=True, exist_ok=True)
        write_lora(out / LORA_FILE, pairs)
        return out / LORA_FILE
    save_components(components_of_run(run), out, storage=storage)
    return out


def _choose_trained(
    transformer: LinearDiT, objective: DiffusionObjective, *, seed: int, report: Report
) -> None:
    """Let all weights learn, or adapters on weights that do not."""
    transformer.requires_grad_(True)
    if objective.lora_rank:
        transformer.to(DTYPES[objective.base_dtype])
        names = add_adapters(
            transformer,
            rank=objective.lora_rank,
            alpha=objective.lora_alpha,
            targets=objective.lora_targets,
            seed=seed,
        )
        report(f"a LoRA of rank {objective.lora_rank} on {len(names)} layers")
    learning = sum(p.numel() for p in transformer.parameters() if p.requires_grad)
    whole = sum(p.numel() for p in transformer.parameters())
    report(f"{learning:,} of {whole:,} weights learn")


def check_sizes(shards: str, multiple: int, remedy: str) -> None:
    """Refuse pictures that the networks cannot take, before anything is learned.

    Raises:
        ConfigError: a side is no multiple of ``multiple``.
    """
    buckets = contents_of(open_folder(shards).index(), source=shards).buckets
    odd = [one for one in buckets if one.height % multiple or one.width % multiple]
    if odd:
        raise ConfigError(
            f"{shards}: {len(odd)} of its {len(buckets)} sizes, such as {odd[0].height} x "
            f"{odd[0].width} px, are no multiples of {multiple}, as this model needs them",
            hint=f"build it for the model: {remedy}",
        )


def same_shards(
    pictures: ShardDataset, loop: LoopConfig, data: str, index: str | None, report: Report
) -> str:
    """What identifies the shards; a resumed run must find those that it began with."""
    loader = pictures.loader(SampleSchedule(seed=loop.seed, batch_size=loop.batch_size))
    report(loader.report)
    found = str(loader.state()["index"])
    if index not in (None, found):
        raise DataError(
            f"{data} was built anew since the run began: pictures come in another order",
            hint="begin a new run from this one: --from RUN --out ANOTHER",
        )
    return found


def captions_of(pictures: ShardDataset, objective: FlowObjective) -> tuple[str, ...]:
    """The first different captions of the set, to draw on the way."""
    source = replace(pictures, captions=objective.choice(null=False), latents=None, text=None)
    found: dict[str, None] = {}
    for batch in islice(source.batches(SampleSchedule(seed=0, batch_size=1)), 4 * SHOWN):
        found.update((caption, None) for caption in batch.captions if caption)
    return tuple(found)[:SHOWN]
