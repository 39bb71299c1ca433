"""An autoencoder's run put together: its pictures, the weights it begins with, and its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sanakit.errors import ConfigError, DataError, MissingModelError
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.config import AUTOENCODERS, AutoencoderConfig
from sanakit.models.discriminator import PatchDiscriminator
from sanakit.models.tiny_decoder import TINY_DECODERS, TinyDecoder, TinyDecoderConfig
from sanakit.models.unfilled import unfilled
from sanakit.train.checkpoint import checkpoints, newest_weights
from sanakit.train.config import LoopConfig
from sanakit.train.recipes.autoencoder import (
    FROZEN_ENCODER,
    PUBLISHED,
    AutoencoderRecipe,
    Phase,
)
from sanakit.train.recipes.shard_dataset import Pixels, ShardDataset, ShardSource, as_image
from sanakit.train.runs.run_config import RunConfig, lasting, speaks
from sanakit.train.sample_schedule import SampleSchedule
from sanakit.weights.catalog import find_checkpoint
from sanakit.weights.layout import CONFIG, stored_variant
from sanakit.weights.perceptual import load_perceptual
from sanakit.weights.resolve import DECODER, EMBEDDED, resolve_model
from sanakit.weights.store import (
    load_strict,
    read_config,
    read_weights,
    write_config,
    write_weights,
)

WHAT = "autoencoder"
VAE = "vae"
"""The folder in a run, or in a model, that holds an autoencoder in the published layout."""
_INSIDE = "autoencoder."
INNER = f"{DECODER}."
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
            latent = autoencoder.encode(as_image(pixels.to(device))).latent
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
    with unfilled():
        autoencoder = Autoencoder(read_config(folder, AutoencoderConfig))
    state = read_weights(folder, variant=variant, dtype=torch.float32)
    load_strict(autoencoder, state, source=str(folder))
    return autoencoder


def run_autoencoder(run: Path, config: AutoencoderConfig) -> Autoencoder:
    """Give an autoencoder the newest weights of a run, averaged ones where there are.

    Raises:
        MissingModelError: there is no checkpoint. WeightsError: it is of another shape.
    """
    tensors = newest_weights(run)
    autoencoder = Autoencoder(config)
    load_strict(autoencoder, autoencoder_tensors(tensors), source=str(run))
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

    A tiny decoder goes to ``run/decoder``, alone.

    Its ``config.json`` has the latents' scaling factor over ``pictures`` training pictures, drawn
    as in training. Where the phase left the encoder as it was, a factor that it came with stays:
    diffusion models were trained on it. Of several ranks the first one writes.

    Raises:
        MissingModelError: there is no checkpoint. DataError: a scale that is none; a full disk.
    """
    if isinstance(recipe.autoencoder.decoder, TinyDecoder):
        return _finish_decoder(recipe.autoencoder.decoder, run, report=report)
    if not speaks():
        return run / VAE
    config = recipe.autoencoder.config
    autoencoder = run_autoencoder(run, config)
    factor = config.scaling_factor
    if recipe.objective.phase not in FROZEN_ENCODER or factor == 1:
        batches = recipe.stream(SampleSchedule(seed=0, batch_size=min(_BATCH, pictures)))
        some = islice(batches, max(1, pictures // _BATCH))
        device = next(recipe.autoencoder.parameters()).device
        factor = latent_scale(autoencoder.to(device), (batch.image for batch in some))
        autoencoder.cpu()
    folder = run / VAE
    write_weights(folder, autoencoder.state_dict())
    write_config(folder, replace(config, scaling_factor=factor), "AutoencoderDC")
    report(f"{folder}: scaling factor {factor:.5g}")
    return folder


def _finish_decoder(decoder: TinyDecoder, run: Path, *, report: Callable[[str], object]) -> Path:
    folder = run / DECODER
    if speaks():
        tensors = autoencoder_tensors(newest_weights(run))
        own = {n.removeprefix(INNER): t for n, t in tensors.items() if n.startswith(INNER)}
        write_weights(folder, own)
        write_config(folder, decoder.config, TinyDecoder.__name__)
        report(f"draw with it: sanakit generate PROMPT --decoder {run}")
    return folder


@dataclass(frozen=True, kw_only=True)
class AutoencoderData:
    """The arguments of a run."""

    data: str
    """A folder of shards, or its address."""
    phase: Phase = "full"
    start: str | None = None
    """Weights to begin with, as `start_autoencoder` takes them."""
    preset: str | None = None
    """Without ``start``: the shape of one that begins at random."""
    decoder: str | None = None
    """Phase distill: the shape of the decoder that is made."""
    held: str | None = None
    """Shards of pictures to measure on."""
    workers: int = 0


def new_run(typed: Mapping[str, Any], pairs: Sequence[str] = ()) -> RunConfig:
    """A run on shards by the published hyper-parameters of a phase.

    ``typed`` are arguments by name, None for those not given; ``pairs`` are ``key=value`` settings.

    Raises:
        ConfigError: an unknown preset; arguments or settings that do not go together.
    """
    given = {"phase": "full", **lasting(typed)}
    phase, start, preset = given["phase"], given.get("start"), given.get("preset")
    if phase != "full" and start is None:
        raise ConfigError(
            f"--phase {phase} would keep weights that were never trained",
            hint="name what to begin with: --from glyph, or --from runs/autoencoder",
        )
    if preset is not None and start is not None:
        raise ConfigError("--preset with --from", hint="weights come with their own shape")
    decoder = given.get("decoder")
    if decoder is not None and phase != "distill":
        raise ConfigError(f"--decoder {decoder} is of --phase distill", hint="add that")
    if decoder is not None and decoder not in TINY_DECODERS:
        raise ConfigError(
            f"no shape of a decoder {decoder!r}", hint=f"there are: {', '.join(TINY_DECODERS)}"
        )
    if preset is not None and preset not in AUTOENCODERS:
        raise ConfigError(
            f"no autoencoder {preset!r}", hint=f"there are: {', '.join(AUTOENCODERS)}"
        )
    if given.get("data") is None:
        raise ConfigError(
            "--data is missing", hint="sanakit data build my-pictures --out SET; --data SET/shards"
        )
    data = AutoencoderData(**given)
    published = PUBLISHED[data.phase]
    loop = LoopConfig(
        batch_size=12,  # that of the paper's figures of memory
        total_images=2_000_000,
        warmup_images=12_000,
        schedule="constant",
        **published.loop,
    )
    run = RunConfig(what=WHAT, data=given, objective=published.objective, loop=loop)
    return run.with_settings(pairs)


def build(run: RunConfig) -> AutoencoderRecipe:
    """Load and put together what `new_run` gave.

    Raises:
        MissingModelError, WeightsError: as `start_autoencoder`.
    """
    data, objective = AutoencoderData(**run.data), run.objective
    shape = AUTOENCODERS[data.preset or "glyph"]
    pictures = ShardDataset(shards=data.data, workers=data.workers)
    held = None if data.held is None else replace(pictures, shards=data.held)
    torch.manual_seed(run.loop.seed)
    discriminator = PatchDiscriminator() if objective.adversarial else None
    perceptual = load_perceptual() if objective.perceptual else None
    if data.start is None:
        autoencoder = Autoencoder(shape)
    else:
        autoencoder = start_autoencoder(data.start, config=shape)
    teacher = None
    if data.phase == "distill":
        teacher = channels_last(autoencoder.decoder)
        autoencoder.decoder = new_decoder(autoencoder.config, TINY_DECODERS[data.decoder or "tiny"])
    return AutoencoderRecipe(
        channels_last(autoencoder),
        ShardSource(pictures.batches, None if held is None else held.batches),
        objective,
        perceptual=perceptual,
        discriminator=discriminator,
        teacher=teacher,
    )


def new_decoder(config: AutoencoderConfig, shape: TinyDecoderConfig) -> TinyDecoder:
    """Make an untrained tiny decoder of that shape for an autoencoder's latents.

    Raises:
        ConfigError: it makes pictures of another size.
    """
    if config.spatial_factor != shape.spatial_factor:
        raise ConfigError(
            f"the decoder enlarges {shape.spatial_factor} times, the autoencoder makes latents "
            f"{config.spatial_factor} times smaller",
            hint="give block_out_channels as many entries as the autoencoder has stages",
        )
    factor = config.scaling_factor
    shape = replace(
        shape,
        latent_channels=config.latent_channels,
        out_channels=config.in_channels,
        scaling_factor=factor,
    )
    return TinyDecoder(shape, scaling_factor=factor)


M = TypeVar("M", bound=nn.Module)


def channels_last(module: M) -> M:
    """Lay convolution weights out as CPU kernels like them; the typed ``to`` does not know it."""
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return module
