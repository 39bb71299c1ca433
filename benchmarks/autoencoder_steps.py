"""What the perceptual loss costs: training steps of the embedded autoencoder, pictures a second.

    python benchmarks/autoencoder_steps.py --side 256 --batch 8 --dtype bfloat16

Needs stlpips-pytorch. Ways take turns, and the best of ``--repeats`` counts: other work disturbs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from sanakit.models.discriminator import PatchDiscriminator
from sanakit.train.recipes.autoencoder import (
    AutoencoderBatch,
    AutoencoderRecipe,
    AutoencoderSettings,
)
from sanakit.train.recipes.autoencoder_run import start_autoencoder
from sanakit.train.sample_schedule import Share
from sanakit.weights.perceptual import load_perceptual


class Noise:
    """A source of pictures that cost nothing."""

    unseen = True

    def __init__(self, side: int) -> None:
        self.side = side

    def batches(self, share: Share) -> Iterator[Tensor]:
        """The same pixels again and again."""
        shape = share.size, 3, self.side, self.side
        pixels = torch.randint(256, shape, dtype=torch.uint8)
        while True:
            yield pixels

    def held(self, count: int) -> Iterator[Tensor]:
        """None."""
        return iter(())


def step(recipe: AutoencoderRecipe, batch: AutoencoderBatch, dtype: torch.dtype) -> float:
    """Seconds of a forward and a backward pass."""
    started = time.perf_counter()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = recipe.loss(batch)["loss"]
    loss.backward()
    recipe.module.zero_grad(set_to_none=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--phase", default="full", choices=["full", "latent", "decoder"])
    given = parser.parse_args()
    dtype = getattr(torch, given.dtype)
    network = load_perceptual()
    ways: dict[str, AutoencoderSettings] = {"L1": AutoencoderSettings(phase=given.phase)}
    for part in (1, 2, 4):
        cut = given.side // part
        ways[f"L1, perceptual on {cut} px"] = AutoencoderSettings(
            phase=given.phase, perceptual=1.0, perceptual_side=cut
        )
    ways["L1, discriminator"] = AutoencoderSettings(phase=given.phase, adversarial=0.1)
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(given.repeats):
        for name, settings in ways.items():
            recipe = AutoencoderRecipe(
                start_autoencoder("glyph"),
                Noise(given.side),
                settings,
                perceptual=network if settings.perceptual else None,
                discriminator=PatchDiscriminator() if settings.adversarial else None,
            )
            recipe.autoencoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            drawn = next(recipe.stream(Share(seed=0, batch_size=given.batch)))
            batch = recipe.prepare(drawn, torch.device("cpu"), None)  # type: ignore[arg-type]
            best[name] = min(best[name], step(recipe, batch, dtype))
    for name, seconds in best.items():
        ratio = seconds / best["L1"]
        print(f"{name:28} {given.batch / seconds:7.2f} pictures/s  {ratio:5.2f} times the cost")


if __name__ == "__main__":
    main()
