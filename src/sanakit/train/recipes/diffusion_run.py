"""A diffusion run put together: the parts it begins with, what of them learns, and its export."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from sanakit.errors import ConfigError, DataError, MissingModelError
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.config import TRANSFORMERS, TransformerConfig, check_fit
from sanakit.models.init import init_transformer
from sanakit.models.transformer import LinearDiT
from sanakit.pipeline.components import (
    Components,
    GenerationDefaults,
    load_prompts,
    read_defaults,
    save_components,
)
from sanakit.pipeline.networks import AutoencoderDC, SanaTransformer2DModel
from sanakit.pipeline.prompts import PromptEncoder
from sanakit.train.checkpoint import newest_valid, read_tensors
from sanakit.train.config import LoopConfig, with_overrides
from sanakit.train.distributed.network import DTYPES
from sanakit.train.distributed.ranks import Ranks
from sanakit.train.recipes.diffusion import (
    SanaRecipe,
    SanaSettings,
    sana_settings,
    split_settings,
    usual_loop,
)
from sanakit.train.recipes.frozen_encoders import Frozen
from sanakit.train.recipes.lora import adapter_pairs, add_adapters, merge_pairs
from sanakit.train.recipes.shard_dataset import (
    OwnPictures,
    States,
    cached_of,
    resolution_of,
    shards_of,
)
from sanakit.train.runs.run_config import is_run, read_run
from sanakit.train.sample_schedule import Share
from sanakit.weights.layout import CONFIG
from sanakit.weights.lora import LORA_FILE, LoraPair, write_lora
from sanakit.weights.resolve import resolve_model
from sanakit.weights.store import Storage, load_strict

Report = Callable[[str], object]
LARGE_GRID = 64
"""Side of the latents of 2048 px: from here on published models have positional encoding."""


@dataclass(frozen=True, kw_only=True)
class SanaArguments:
    """What a run is about; ``resolution`` and ``index`` are found out when it begins."""

    data: str
    start: str | None = None
    """A model, or a run, to begin with."""
    preset: str | None = None
    """A shape to begin with at random; the other parts are those of ``start``."""
    autoencoder: str | None = None
    text_encoder: str | None = None
    """Folders of parts that take the place of those of ``start``."""
    lora: int | None = None
    held: str | None = None
    prompts: Sequence[str] = ()
    states: States = "auto"
    workers: int = 0
    resolution: int | None = None
    """About the side of the pictures, px."""
    index: str | None = None
    """Identifies the shards."""


def start_components(
    arguments: SanaArguments,
    settings: SanaSettings,
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
    preset, start = arguments.preset, arguments.start
    if preset is None and start is None:
        raise ConfigError(
            "nothing to begin with", hint="--from glyph, --from MODEL, or --preset sana-0.6b"
        )
    if preset is not None and preset not in TRANSFORMERS:
        raise ConfigError(f"no preset {preset!r}", hint=f"there are: {', '.join(TRANSFORMERS)}")
    run = start if start is not None and is_run(start) else None
    parts = None if run is None else components_of_run(Path(run), device=device)
    prompts = _prompts(arguments, parts, device)
    autoencoder = _autoencoder(arguments, parts)
    if parts is not None:
        defaults = parts.defaults
    elif start is not None:
        defaults = read_defaults(resolve_model(start))
    else:
        defaults = GenerationDefaults()
    if settings.flow_shift is not None:
        defaults = replace(defaults, scheduler=defaults.scheduler.shifted(settings.flow_shift))
    channels, width = autoencoder.config.latent_channels, prompts.text_encoder.width
    before: LinearDiT | None = None
    if preset is not None:
        config = replace(
            TRANSFORMERS[preset],
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
    assert arguments.resolution is not None
    wanted = at_resolution(config, arguments.resolution // factor, settings)
    if before is not None and wanted != config:
        report(
            f"the model draws {config.sample_size * factor} px "
            f"(positions {config.interpolation_scale}), this run goes to "
            f"{wanted.sample_size * factor} px (positions {wanted.interpolation_scale})"
        )
    with torch.device("meta"):
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
    config: TransformerConfig, side: int, settings: SanaSettings
) -> TransformerConfig:
    """The shape of the next stage: ``side`` latents, and positions where they are asked for.

    Positional encoding has no weights, so it can be added late (SANA, arXiv 2410.10629): 2048 px
    have scale 1, 4096 px scale 2.
    """
    scale = settings.interpolation_scale
    if scale == "keep":
        scale = config.interpolation_scale
    elif scale == "auto":
        scale = config.interpolation_scale
        if side >= LARGE_GRID and (scale is None or side != config.sample_size):
            scale = side / LARGE_GRID
    assert not isinstance(scale, str)
    return replace(config, sample_size=side, interpolation_scale=scale)


def components_of_run(run: Path, *, device: str = "cpu") -> Components:
    """The parts that a run has come to; a LoRA is merged into the weights.

    Raises:
        DataError: no run of diffusion. MissingModelError: it has no checkpoint yet.
        ConfigError, WeightsError: as :func:`start_components`.
    """
    arguments, settings = told(run)
    parts = start_components(arguments, settings, device=device, report=lambda line: None)
    if settings.lora_rank:
        merge_pairs(parts.transformer, lora_of_run(run))
    else:
        load_strict(parts.transformer, trained(run), source=str(run))
    return replace(parts, name=run.name)


def lora_of_run(run: Path) -> dict[str, LoraPair]:
    """The adapters of a run, by the layer that they change.

    Raises:
        ConfigError: the run trains all weights. Others as :func:`components_of_run`.
    """
    settings = told(run)[1]
    if not settings.lora_rank:
        raise ConfigError(
            f"{run} trained all weights, and no LoRA",
            hint=f"export it: sanakit train export {run} --out models/mine",
        )
    return adapter_pairs(trained(run), alpha=settings.lora_alpha)


def told(run: Path) -> tuple[SanaArguments, SanaSettings]:
    """What a run was started with.

    Raises:
        ConfigError: it is no run of diffusion on own pictures. DataError: as `read_run`.
    """
    file = read_run(run)
    if file.verb != "diffusion":
        raise ConfigError(f"{run} is a run of `sanakit train {file.verb}`")
    arguments = SanaArguments(**file.arguments)
    return arguments, sana_settings(split_settings(file.settings)[0], lora=arguments.lora)


def trained(run: Path) -> dict[str, Tensor]:
    """The newest weights of a run, averaged ones where there are.

    Raises:
        MissingModelError: there is no checkpoint yet. WeightsError: none is whole.
    """
    folder = newest_valid(run, Ranks(), print)
    if folder is None:
        raise MissingModelError(
            f"{run} holds no checkpoint yet",
            hint="one is written every five minutes, and when the run ends or is stopped",
        )
    return read_tensors(folder, "average") or read_tensors(folder, "model")


def root_model(arguments: SanaArguments) -> str | None:
    """The model whose autoencoder and text encoder a run uses; None if they are of two."""
    while arguments.autoencoder is None and arguments.text_encoder is None:
        start = arguments.start
        if start is None or not is_run(start):
            return start
        arguments = told(Path(start))[0]
    return None


def _transformer(start: str | None) -> LinearDiT:
    assert start is not None
    return SanaTransformer2DModel.from_pretrained(
        start, subfolder="transformer", torch_dtype=torch.float32
    )


def _autoencoder(arguments: SanaArguments, parts: Components | None) -> Autoencoder:
    given = arguments.autoencoder
    if given is None and parts is not None:
        return parts.autoencoder
    source = given or arguments.start
    if source is None:
        raise _missing_part("autoencoder")
    alone = (Path(source).expanduser() / CONFIG).is_file()
    return AutoencoderDC.from_pretrained(
        source, subfolder=None if alone else "vae", torch_dtype=torch.float32
    )


def _prompts(arguments: SanaArguments, parts: Components | None, device: str) -> PromptEncoder:
    given = arguments.text_encoder
    if given is None and parts is not None:
        return parts.prompts
    source = given or arguments.start
    if source is None:
        raise _missing_part("text encoder")
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    instruction = GenerationDefaults().instruction
    if parts is not None:
        instruction = parts.defaults.instruction
    elif arguments.start is not None:
        instruction = read_defaults(resolve_model(arguments.start)).instruction
    dtype = torch.bfloat16 if on_gpu else torch.float32
    return load_prompts(source, dtype=dtype, instruction=instruction)


def _missing_part(name: str) -> ConfigError:
    return ConfigError(
        f"--preset names the transformer's shape alone, and there is no {name}",
        hint="name a model for the other parts: --from MODEL; or --autoencoder FOLDER and "
        "--text-encoder FOLDER",
    )


SanaRun = tuple[SanaRecipe, LoopConfig, SanaArguments]
SHOWN = 3
"""Captions of the set that the validation grid shows where no prompts are given."""


def sana_run(
    arguments: SanaArguments, settings: Sequence[str] = (), *, report: Report = print
) -> SanaRun:
    """Load, check and put together; the arguments come back with what was found out.

    Raises:
        ConfigError: settings or parts that do not go together. MissingModelError: no such model.
        DataError: no shards, or others than when the run began. WeightsError: damaged weights.
    """
    mine, loops = split_settings(settings)
    own = sana_settings(mine, lora=arguments.lora)
    shards = shards_of(arguments.data)
    held = None if arguments.held is None else shards_of(arguments.held)
    arguments = replace(arguments, resolution=resolution_of(shards))
    device = dict(pair.partition("=")[::2] for pair in loops).get("device", "auto")
    parts = start_components(arguments, own, device=device, report=report)
    transformer = parts.transformer
    usual = usual_loop(
        width=transformer.config.width,
        lora=own.lora_rank > 0,
        scratch=arguments.preset is not None,
    )
    loop = with_overrides(usual, loops)
    if own.base_dtype != "float32" and loop.compute_dtype == "float32":
        raise ConfigError(
            f"base_dtype={own.base_dtype} under compute_dtype=float32: products would mix both",
            hint="leave compute_dtype at bfloat16",
        )
    latents, text = cached_of(shards, root_model(arguments), arguments.states)
    for name, found in (("latents", latents), ("text states", text)):
        if found is not None:
            report(f"{name}: read from {found}")
    pictures = OwnPictures(
        shards=shards, captions=own.choice(), latents=latents, text=text, workers=arguments.workers
    )
    arguments = replace(
        arguments,
        index=_same_shards(pictures, loop, arguments, report),
        prompts=tuple(arguments.prompts) or _captions(pictures, own),
    )
    if arguments.preset is not None:
        init_transformer(transformer, generator=torch.Generator().manual_seed(loop.seed))
        nn.init.constant_(transformer.caption_norm.weight, own.caption_gain)
    _choose_trained(transformer, own, seed=loop.seed, report=report)
    recipe = SanaRecipe(
        transformer,
        Frozen(parts.autoencoder, parts.prompts, max_tokens=own.max_tokens),
        parts.defaults,
        pictures,
        own,
        held=None if held is None else OwnPictures(shards=held, workers=arguments.workers),
        prompts=arguments.prompts,
    )
    return recipe, loop, arguments


def export_run(run: Path, out: Path, *, storage: Storage = "as-is", merged: bool = False) -> Path:
    """Write what a run learned: a model in the published layout, or the file of a LoRA.

    ``merged`` adds a LoRA to the weights and writes the whole model.

    Raises:
        ConfigError: ``merged`` where there is no LoRA, ``storage`` for one. DataError: the disk.
        MissingModelError, WeightsError: as `components_of_run`.
    """
    settings = told(run)[1]
    if merged and not settings.lora_rank:
        raise ConfigError(f"{run} trained all weights: there is nothing to merge")
    if settings.lora_rank and not merged:
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
    transformer: LinearDiT, settings: SanaSettings, *, seed: int, report: Report
) -> None:
    """Let all weights learn, or adapters on weights that do not."""
    transformer.requires_grad_(True)
    if settings.lora_rank:
        transformer.to(DTYPES[settings.base_dtype])
        names = add_adapters(
            transformer,
            rank=settings.lora_rank,
            alpha=settings.lora_alpha,
            targets=settings.lora_targets,
            seed=seed,
        )
        report(f"a LoRA of rank {settings.lora_rank} on {len(names)} layers")
    learning = sum(p.numel() for p in transformer.parameters() if p.requires_grad)
    whole = sum(p.numel() for p in transformer.parameters())
    report(f"{learning:,} of {whole:,} weights learn")


def _same_shards(
    pictures: OwnPictures, loop: LoopConfig, arguments: SanaArguments, report: Report
) -> str:
    """What identifies the shards; a resumed run must find those that it began with."""
    loader = pictures.loader(Share(seed=loop.seed, batch_size=loop.batch_size))
    report(loader.report)
    found = str(loader.state()["index"])
    if arguments.index not in (None, found):
        raise DataError(
            f"{arguments.data} was built anew since the run began: pictures come in another order",
            hint="begin a new run from this one: --from RUN --out ANOTHER",
        )
    return found


def _captions(pictures: OwnPictures, settings: SanaSettings) -> tuple[str, ...]:
    """The first different captions of the set, to draw on the way."""
    source = replace(pictures, captions=settings.choice(null=False), latents=None, text=None)
    found: dict[str, None] = {}
    for batch in islice(source.batches(Share(seed=0, batch_size=1)), 4 * SHOWN):
        found.update((caption, None) for caption in batch.captions if caption)
    return tuple(found)[:SHOWN]
