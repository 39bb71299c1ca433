"""Diffusion runs on one's own pictures, put together and exported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from sanakit.errors import ConfigError, DataError
from sanakit.models.init import init_transformer
from sanakit.models.transformer import LinearDiT
from sanakit.pipeline.components import save_components
from sanakit.train.frozen import Frozen
from sanakit.train.lora import add_adapters
from sanakit.train.network import DTYPES
from sanakit.train.own_pictures import OwnPictures, cached_of, resolution_of, shards_of
from sanakit.train.sana import SanaRecipe
from sanakit.train.sana_settings import SanaSettings, sana_settings, split_settings, usual_loop
from sanakit.train.sana_start import (
    SanaArguments,
    components_of_run,
    lora_of_run,
    root_model,
    start_components,
    told,
)
from sanakit.train.settings import LoopConfig, with_overrides
from sanakit.train.shares import Share
from sanakit.weights.lora import LORA_FILE, write_lora
from sanakit.weights.store import Storage

Report = Callable[[str], object]
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
        parts.habits,
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
