"""Short trainings of autoencoders at 128 px: by width, and f32 against f8 at equal compute."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from recipes.glyph.data.pictures import GlyphPictures
from recipes.glyph.research.glyph_source import GLYPH_LOSSES, GlyphSource
from recipes.glyph.research.short_run import is_done, keep, short_run
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.config import AUTOENCODERS, AutoencoderConfig
from sanakit.train.config import LoopConfig
from sanakit.train.mfu import counted
from sanakit.train.recipes.autoencoder import AutoencoderRecipe, psnr
from sanakit.train.recipes.autoencoder_run import channels_last
from sanakit.train.recipes.shard_dataset import as_image
from sanakit.train.sample_schedule import SampleSchedule

SIDE = 128
SAMPLES = 1_600
BATCH = 8
HELD = 256
WIDTHS = (8, 12, 16)


class Halved:
    """The glyph set at half its size: each pixel is the mean of four."""

    unseen = True

    def __init__(self, pictures: GlyphPictures) -> None:
        self.source = GlyphSource(pictures)

    def batches(self, schedule: SampleSchedule) -> Iterator[Tensor]:
        for image in self.source.batches(schedule):
            yield halved(image)

    def held(self, count: int) -> Iterator[Tensor]:
        for image in self.source.held(count):
            yield halved(image)


def halved(image: Tensor) -> Tensor:
    """Pictures ``b 3 S S`` at half their side."""
    return functional.avg_pool2d(as_image(image), 2)


def f32(width: int) -> AutoencoderConfig:
    """The embedded model's autoencoder at another width; 16 is its own."""
    widths = tuple(width * factor for factor in (1, 2, 4, 8, 16, 16))
    return replace(
        AUTOENCODERS["glyph"],
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
    )


def f8(width: int) -> AutoencoderConfig:
    """The same four finest stages, with more blocks at 16 x 16 in place of the two coarser ones."""
    widths = tuple(width * factor for factor in (1, 2, 4, 8))
    return AutoencoderConfig(
        latent_channels=4,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_layers_per_block=(0, 1, 2, 5),
        decoder_layers_per_block=(0, 1, 2, 8),
        encoder_qkv_multiscales=((),) * 4,
        decoder_qkv_multiscales=((),) * 4,
    )


def operations(config: AutoencoderConfig) -> float:
    """Of encoding and decoding one picture."""
    return counted(lambda: Autoencoder(config)(torch.zeros(1, 3, SIDE, SIDE)).sample)


def runs() -> Mapping[str, tuple[AutoencoderConfig, int]]:
    """Shape and samples of each run; f8 sees as many as the compute of f32-12 pays for."""
    found = {f"autoencoder-f32-{width}": (f32(width), SAMPLES) for width in WIDTHS}
    paid = SAMPLES * operations(f32(12)) / operations(f8(12))
    found["autoencoder-f8-12"] = f8(12), round(paid / BATCH) * BATCH
    return found


def weights_of(name: str, work: Path) -> Path:
    """Where the trained weights are: too large for the repository."""
    return work / f"{name}.safetensors"


def train_autoencoders(
    data: Path, work: Path, results: Path, *, report: Callable[[str], object] = print
) -> None:
    """All runs that are not finished; their weights go to ``work``."""
    work.mkdir(parents=True, exist_ok=True)
    pictures = GlyphPictures.open(data, 2 * SIDE)
    for name, (config, samples) in runs().items():
        if is_done(name, results):
            continue
        report(f"{name}: {samples} samples")
        torch.manual_seed(0)
        module = channels_last(Autoencoder(config))
        recipe = AutoencoderRecipe(module, Halved(pictures), replace(GLYPH_LOSSES, held=HELD))
        loop = LoopConfig(
            batch_size=BATCH,
            total_images=samples,
            peak_lr=1e-3,
            warmup_images=160,
            decay_share=0.5,
            betas=(0.9, 0.98),
        )
        trained = short_run(recipe, loop, report=report)
        with trained.shown(module, 0):
            values = [
                psnr(module(image).float().clamp(-1, 1), image)
                for image in recipe.source.held(HELD)
            ]
        save_file(module.state_dict(), weights_of(name, work))
        found = {
            "parameters": sum(p.numel() for p in module.parameters()),
            "operations": operations(config),
            "samples": samples,
            "psnr": [round(value, 3) for value in torch.cat(values).tolist()],
            "loss": trained.loss,
            "cpu_seconds": round(trained.cpu_seconds, 1),
        }
        keep(name, found, results)
        report(f"{name}: {torch.cat(values).mean():.2f} dB in {trained.cpu_seconds:.0f} s")
