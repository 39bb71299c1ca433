"""The first samples of a bank of latents, which may still be growing behind them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from sanakit.data.glyph.mixture import Mixture
from sanakit.data.glyph.pictures import GlyphPictures
from sanakit.errors import DataError
from sanakit.models.config import AUTOENCODERS
from sanakit.train import latent_bank
from sanakit.train.autoencoder_files import start_autoencoder
from sanakit.train.autoencoder_recipes import channels_last
from sanakit.train.latent_bank import FACTS, HELD, PIECE, LatentBank

COUNT = 32 * PIECE


def first_of_bank(folder: Path, data: Path, autoencoder: str, *, count: int = COUNT) -> LatentBank:
    """The first ``count`` samples of the bank that `sanakit train diffusion glyph` makes.

    Held samples are the bank's, of concept-style pairs that it does not train on; they are encoded
    where the bank does not have them yet.

    Raises:
        DataError: the bank does not hold so many yet, or is of another data set or autoencoder.
    """
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    pictures = GlyphPictures.open(data, facts["size"])
    mixture = Mixture(pictures)
    unseen = Mixture(pictures, split="held_style", composites=0, white=1)
    samples = mixture.draw(facts["count"], np.random.default_rng(facts["seed"]))
    held = unseen.draw(min(HELD, facts["count"]), np.random.default_rng(facts["seed"]))
    if latent_bank._digest(repr([samples, held]).encode()) != facts["samples"]:
        raise DataError(f"{folder} holds samples of another data set than {data}")
    paths = [folder / f"train-{first:07d}.npy" for first in range(0, count, PIECE)]
    if absent := [path.name for path in paths if not path.is_file()]:
        raise DataError(f"{folder} lacks {absent[0]}", hint="wait for it, or ask for fewer")
    latents = np.concatenate([np.load(path) for path in paths])[:count]
    known = folder / "held-0000000.npy"
    if known.is_file():
        held_latents = np.load(known)
    else:
        network = channels_last(start_autoencoder(autoencoder, config=AUTOENCODERS["glyph"]))
        weights = network.state_dict().values()
        if (
            latent_bank._digest(*(tensor.numpy().tobytes() for tensor in weights))
            != facts["autoencoder"]
        ):
            raise DataError(f"{folder} was made by another autoencoder than {autoencoder}")
        held_latents = latent_bank._encoded(network.eval(), unseen, held, torch.device("cpu"))
    rms = float(np.sqrt(np.square(latents, dtype=np.float64).mean()))
    return LatentBank(
        mixture=mixture,
        samples=samples[:count],
        latents=(latents / rms).astype(np.float16),
        held=held,
        held_latents=(held_latents / rms).astype(np.float16),
        scaling_factor=1 / rms,
    )
