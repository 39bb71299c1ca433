"""An autoencoder's run put together: its pictures, the weights it begins with, and its end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from sanakit.errors import ConfigError, DataError, MissingModelError
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.config import AUTOENCODERS, AutoencoderConfig
from sanakit.models.discriminator import PatchDiscriminator
from sanakit.train.checkpoint import checkpoints, newest_valid, read_tensors
from sanakit.train.config import LoopConfig, with_overrides
from sanakit.train.distributed.ranks import Ranks
from sanakit.train.recipes.autoencoder import (
    FROZEN_ENCODER,
    PUBLISHED,
    AutoencoderRecipe,
    AutoencoderSettings,
    Phase,
)
from sanakit.train.recipes.picture_sources import (
    PictureSource,
    Pixels,
    as_image,
    open_shards,
)
from sanakit.train.sample_schedule import Share
from sanakit.weights.catalog import find_checkpoint
from sanakit.weights.layout import CONFIG, stored_variant
from sanakit.weights.perceptual import load_perceptual
from sanakit.weights.resolve import EMBEDDED, resolve_model
from sanakit.weights.store import (
    load_strict,
    read_config,
    read_weights,
    write_config,
    write_weights,
)

VAE = "vae"
"""The folder in a run, or in a model, that holds an autoencoder in the published layout."""
_INSIDE = "autoencoder."
_BATCH = 16


@torch.no_grad()
def latent_scale(autoencoder: Autoencoder, pictures: Iterable[Pixels]) -> float:
    """Give 1 / RMS over all raw latents of some pictures: what makes them about unit size.

    Pictures are uint8, or fp32 in [-1, 1]; latents are computed as ``autoencoder`` is, in fp32
    unless its weights are not.

    Raises:
        DataError: no picture, or latents that are 0 or not finite.
    """
    device = next(autoencoder.parameters()).device
    learning, squared, count = autoencoder.training, 0.0, 0
    autoencoder.eval()
    try:
        for pixels in pictures:
            latent = autoencoder.encode(as_image(pixels.to(device)))
            squared += float(latent.double().square().sum())
            count += latent.numel()
    finally:
        autoencoder.train(learning)
    if not 0 < squared < float("inf"):
        raise DataError(f"the squares of {count} values of latents sum to {squared}: no scale")
    return (count / squared) ** 0.5


def start_autoencoder(
    name: str | Path, *, config: AutoencoderConfig | None = None, offline: bool = False
) -> Autoencoder:
    """Give a trained autoencoder to go on with, fp32 and with its scaling factor.

    Args:
        name: a run of `sanakit train autoencoder`; an embedded, published or local model; a folder
            with an autoencoder's ``config.json`` and safetensors.
        config: the shape of a run that did not reach its end, and has no ``vae`` folder.
        offline: never ask the network for a published model.

    Raises:
        MissingModelError: nothing of that name. WeightsError: files that are damaged or misfit.
    """
    folder = Path(name)
    embedded = isinstance(name, str) and name in EMBEDDED
    if not embedded and folder.is_dir() and checkpoints(folder):
        done = folder / VAE / CONFIG
        known = read_config(done.parent, AutoencoderConfig) if done.is_file() else config
        if known is None:
            raise MissingModelError(
                f"{folder}: did not reach its end and does not say of what shape it is",
                hint="let it end: --resume",
            )
        return run_autoencoder(folder, known)
    checkpoint = find_checkpoint(name) if isinstance(name, str) else None
    if embedded or not (folder / CONFIG).is_file():
        alone = checkpoint is not None and checkpoint.kind == "autoencoder"
        folder = resolve_model(name, subfolder=None if alone else VAE, offline=offline)
        folder = folder if alone else folder / VAE
    variant = stored_variant(folder, None if checkpoint is None else checkpoint.variant)
    with torch.device("meta"):
        autoencoder = Autoencoder(read_config(folder, AutoencoderConfig))
    state = read_weights(folder, variant=variant, dtype=torch.float32)
    load_strict(autoencoder, state, source=str(folder))
    return autoencoder


def run_autoencoder(run: Path, config: AutoencoderConfig) -> Autoencoder:
    """Give an autoencoder the newest weights of a run, averaged ones where there are.

    Raises:
        MissingModelError: there is no checkpoint. WeightsError: it is of another shape.
    """
    folder = newest_valid(run, Ranks(), print)
    if folder is None:
        raise MissingModelError(
            f"{run} holds no checkpoint", hint="train that stage first, or name its folder"
        )
    autoencoder = Autoencoder(config)
    tensors = read_tensors(folder, "average") or read_tensors(folder, "model")
    load_strict(autoencoder, autoencoder_tensors(tensors), source=str(folder))
    return autoencoder


def autoencoder_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the autoencoder among those of a recipe's module, by their own names."""
    if not any(name.startswith(_INSIDE) for name in tensors):
        return tensors
    return {n.removeprefix(_INSIDE): t for n, t in tensors.items() if n.startswith(_INSIDE)}


def finish_autoencoder(
    recipe: AutoencoderRecipe,
    run: Path,
    *,
    pictures: int = 2048,
    report: Callable[[str], object] = print,
) -> Path:
    """Write what a run has learnt to ``run/vae``, in the published layout, and give that folder.

    Its ``config.json`` has the latents' scaling factor over ``pictures`` training pictures, drawn
    as in training. Where the phase left the encoder as it was, a factor that it came with stays:
    diffusion models were trained on it. Of several ranks the first one writes.

    Raises:
        MissingModelError: there is no checkpoint. DataError: a scale that is none; a full disk.
    """
    if int(os.environ.get("RANK", 0)):
        return run / VAE
    config = recipe.autoencoder.config
    autoencoder = run_autoencoder(run, config)
    factor = config.scaling_factor
    if recipe.settings.phase not in FROZEN_ENCODER or factor == 1:
        batches = recipe.stream(Share(seed=0, batch_size=min(_BATCH, pictures)))
        some = islice(batches, max(1, pictures // _BATCH))
        device = next(recipe.autoencoder.parameters()).device
        factor = latent_scale(autoencoder.to(device), (batch.image for batch in some))
        autoencoder.cpu()
    folder = run / VAE
    write_weights(folder, autoencoder.state_dict())
    write_config(folder, replace(config, scaling_factor=factor), "AutoencoderDC")
    report(f"{folder}: scaling factor {factor:.5g}")
    return folder


M = TypeVar("M", bound=nn.Module)
AutoencoderRun = tuple[AutoencoderRecipe, LoopConfig]


def shards_autoencoder(
    shards: str | Path,
    *,
    phase: Phase = "full",
    preset: str = "glyph",
    start: str | Path | None = None,
    held: str | Path | None = None,
    workers: int = 0,
    settings: Sequence[str] = (),
) -> AutoencoderRun:
    """An autoencoder of one's own pictures, by the published hyper-parameters of a phase.

    ``preset`` names the shape of one that begins at random, ``start`` the weights to begin with;
    ``held`` are shards of pictures to measure on.

    Raises:
        ConfigError: an unknown preset.
    """
    if preset not in AUTOENCODERS:
        raise ConfigError(
            f"no autoencoder {preset!r}", hint=f"there are: {', '.join(AUTOENCODERS)}"
        )
    published = PUBLISHED[phase]
    loop = LoopConfig(
        batch_size=12,  # that of the paper's figures of memory
        total_images=2_000_000,
        warmup_images=12_000,
        schedule="constant",
        **published.loop,
    )
    source = open_shards(shards, held=held, workers=workers)
    losses = published.settings
    return put_together(source, losses, loop, start, AUTOENCODERS[preset], settings)


def put_together(
    source: PictureSource,
    losses: AutoencoderSettings,
    loop: LoopConfig,
    start: str | Path | None,
    config: AutoencoderConfig,
    settings: Sequence[str],
) -> AutoencoderRun:
    """A run of its parts; ``settings`` that are not of the losses are of the loop."""
    of_losses = {field.name for field in fields(AutoencoderSettings)}
    mine = [pair for pair in settings if pair.partition("=")[0] in of_losses]
    losses = with_overrides(losses, mine)
    loop = with_overrides(loop, [pair for pair in settings if pair not in mine])
    torch.manual_seed(loop.seed)
    discriminator = PatchDiscriminator() if losses.adversarial else None
    perceptual = load_perceptual() if losses.perceptual else None
    module = Autoencoder(config) if start is None else start_autoencoder(start, config=config)
    recipe = AutoencoderRecipe(
        channels_last(module),
        source,
        losses,
        perceptual=perceptual,
        discriminator=discriminator,
    )
    return recipe, loop


def channels_last(module: M) -> M:
    """Lay convolution weights out as CPU kernels like them; the typed ``to`` does not know it."""
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return module
