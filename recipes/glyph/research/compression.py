"""f32 against f8 at equal compute: transformers on the latents of two small autoencoders."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from recipes.glyph.data.mixture import Mixture, Sample
from recipes.glyph.data.pictures import GlyphPictures
from recipes.glyph.research.autoencoders import SIDE, f8, f32, halved, weights_of
from recipes.glyph.research.diffusion import Material, Variant
from recipes.glyph.research.latent_bank import LatentBank
from recipes.glyph.research.sampling import Way, decoded, described, frechet, latents_by
from recipes.glyph.research.short_run import is_done, keep, short_run
from sanakit.evaluate.features import load_features
from sanakit.evaluate.frechet import Reference
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.config import AutoencoderConfig
from sanakit.models.flops import transformer_flops
from sanakit.models.text_encoder import TextEncoder
from sanakit.pipeline.components import load_components
from sanakit.pipeline.pixels import to_pixels
from sanakit.pipeline.prompts import PromptEncoder
from sanakit.shapes import Image

PICTURES, DRAWN, REFERENCE = 1_024, 128, 256
SAMPLES = 4_800
WORDS = 12
WAY = Way(steps=14, scale=2.5)


@dataclass(frozen=True, kw_only=True)
class System:
    """An autoencoder, and how many of its latent's places make a token's side."""

    autoencoder: str
    config: AutoencoderConfig
    patch: int

    @property
    def side(self) -> int:
        """Of the latent."""
        return SIDE // self.config.spatial_factor

    def operations(self) -> int:
        """Of the transformer, for one sample."""
        shape = Variant(patch=self.patch).config(self.config.latent_channels, self.side, 256)
        return transformer_flops(shape, (self.side, self.side), WORDS)


SYSTEMS: Mapping[str, System] = {
    "system-f32p1": System(autoencoder="autoencoder-f32-12", config=f32(12), patch=1),
    "system-f32p1-glyph": System(autoencoder="glyph", config=f32(16), patch=1),
    "system-f8p2": System(autoencoder="autoencoder-f8-12", config=f8(12), patch=2),
    "system-f8p1": System(autoencoder="autoencoder-f8-12", config=f8(12), patch=1),
}


def samples_for(system: System) -> int:
    """As many as the compute of the first system's samples pays for, in whole batches."""
    first = SYSTEMS["system-f32p1"].operations()
    return max(1, round(SAMPLES * first / system.operations() / 32)) * 32


@torch.inference_mode()
def encoded(autoencoder: Autoencoder, images: list[Image]) -> np.ndarray:
    """Raw latents of pictures, ``n c h w``."""
    with torch.autocast("cpu", torch.bfloat16):
        parts = [autoencoder.encode(image).latent.float() for image in images]
    return torch.cat(parts).numpy().astype(np.float16)


def pictures_of(mixture: Mixture, samples: list[Sample]) -> list[Image]:
    """Pictures of samples at half their size, 16 at a time."""
    return [halved(mixture.images(samples[at : at + 16])) for at in range(0, len(samples), 16)]


def compare_systems(
    model: str,
    data: Path,
    features: Path | None,
    work: Path,
    results: Path,
    *,
    only: Collection[str] = tuple(SYSTEMS),
    report: Callable[[str], object] = print,
) -> None:
    """Every system asked for that is not done; ``model`` gives the text encoder."""
    if all(is_done(name, results) for name in only):
        return
    pictures = GlyphPictures.open(data, 2 * SIDE)
    mixture = Mixture(pictures)
    unseen = Mixture(pictures, split="held_style", composites=0, white=1)
    alone = Mixture(pictures, composites=0, white=1)
    rng = np.random.default_rng(0)
    samples = mixture.draw(PICTURES, rng)
    held, known = unseen.draw(DRAWN, rng), alone.draw(REFERENCE, rng)
    images = [pictures_of(*pair) for pair in ((mixture, samples), (unseen, held), (alone, known))]
    network = load_features(features)
    reference = Reference(described(network, to_pixels(torch.cat(images[2]))))
    yardstick = frechet(described(network, to_pixels(torch.cat(images[1]))), reference)
    report(f"real: FD-EffNetLite0 {yardstick['fd']:.1f}")
    made: dict[str, tuple[LatentBank, Autoencoder, Reference, dict[str, object]]] = {}
    for name, system in SYSTEMS.items():
        if name not in only or is_done(name, results):
            continue
        if system.autoencoder not in made:
            if system.autoencoder == "glyph":
                # Trained on 40 times as many pictures: not of equal compute, but a yardstick.
                autoencoder = load_components("glyph").autoencoder
            else:
                autoencoder = Autoencoder(system.config)
                autoencoder.load_state_dict(load_file(weights_of(system.autoencoder, work)))
            autoencoder.eval()
            raw = [encoded(autoencoder, some) for some in images]
            rms = float(np.sqrt(np.square(raw[0], dtype=np.float64).mean()))
            bank = LatentBank(
                mixture=mixture,
                samples=samples,
                latents=(raw[0] / rms).astype(np.float16),
                held=held,
                held_latents=(raw[1] / rms).astype(np.float16),
                scaling_factor=1 / rms,
            )
            again = [
                described(network, decoded(autoencoder, torch.from_numpy(some).float(), 1.0))
                for some in raw[1:]
            ]
            restored = frechet(again[0], reference)
            made[system.autoencoder] = bank, autoencoder, Reference(again[1]), restored
            report(f"{system.autoencoder}: restored {restored['fd']:.1f}")
        bank, autoencoder, of_restored, restored = made[system.autoencoder]
        material = Material.with_text_of(model, bank)
        count = samples_for(system)
        variant = Variant(patch=system.patch, samples=count, batch=32, halflife=count // 12)
        recipe = material.recipe(variant)
        report(f"{name}: {count} samples")
        trained = short_run(recipe, variant.loop(), halflives=[variant.halflife], report=report)
        prompts = PromptEncoder(material.tokenizer, TextEncoder(material.llm), instruction=None)
        text = prompts.encode([sample.caption for sample in held], instruction=None)
        null = prompts.encode_null([""] * DRAWN, text)
        with trained.shown(recipe.module, variant.halflife):
            errors = recipe.held_errors()
            latents = latents_by(
                WAY,
                recipe.module.get_submodule("transformer"),  # type: ignore[arg-type]
                text,
                null,
                bank.latents.shape[1:],
            )
        rows = described(network, decoded(autoencoder, latents, bank.scaling_factor))
        found = {
            "samples": count,
            "operations": system.operations(),
            "tokens": (system.side // system.patch) ** 2,
            "cpu_seconds": round(trained.cpu_seconds, 1),
            "loss": trained.loss,
            "held": round(float(errors.mean()), 5),
            "real": yardstick,
            "restored": restored,
            "drawn": frechet(rows, reference),
            "drawn_against_restored": frechet(rows, of_restored),
        }
        keep(name, found, results)
        report(f"{name}: {found['drawn']['fd']:.1f}, {found['drawn_against_restored']['fd']:.1f}")
