"""Latents of samples: of unit size, of the right pictures, made once, by any number of ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from recipes.glyph.data.mixture import Mixture
from recipes.glyph.data.pictures import GlyphPictures
from recipes.glyph.research import latent_bank
from recipes.glyph.research.latent_bank import LatentBank, open_bank, size_and_scale

from sanakit.errors import ConfigError, DataError
from sanakit.models.autoencoder import Autoencoder
from sanakit.train.distributed.ranks import Ranks
from tiny import AUTOENCODER
from tiny_pictures import tiny_pictures


class Waiting(Ranks):
    """Two ranks of which one is here: it does not wait for the other."""

    def wait(self) -> None:
        """Go on."""


@pytest.fixture
def pictures(tmp_path: Path) -> GlyphPictures:
    return tiny_pictures(tmp_path / "data")


def opened(
    pictures: GlyphPictures, folder: Path, *, count: int = 12, weights: int = 0, ranks: Ranks
) -> LatentBank:
    torch.manual_seed(weights)
    return open_bank(
        Autoencoder(AUTOENCODER),
        Mixture(pictures, composites=0),
        Mixture(pictures, split="held_style", composites=0, white=1),
        folder,
        count=count,
        ranks=ranks,
    )


def test_latents_are_those_of_the_samples_at_unit_size(
    pictures: GlyphPictures, tmp_path: Path
) -> None:
    bank = opened(pictures, tmp_path / "bank", ranks=Ranks())
    assert bank.latents.shape == (12, 4, 2, 2)
    assert np.square(bank.latents.astype(np.float64)).mean() ** 0.5 == pytest.approx(1, abs=1e-3)
    assert {sample.background for sample in bank.held} == {"white"}
    torch.manual_seed(0)
    autoencoder = Autoencoder(AUTOENCODER).eval()
    with torch.no_grad():
        for samples, latents in ((bank.samples, bank.latents), (bank.held, bank.held_latents)):
            exact = autoencoder.encode(bank.mixture.images(samples)).latent * bank.scaling_factor
            error = torch.from_numpy(latents.astype(np.float32)) - exact
            assert error.square().mean().sqrt() < 0.03  # encoded in bf16, kept in fp16
    assert size_and_scale(tmp_path / "bank") == (pictures.size, bank.scaling_factor)


def test_ranks_share_the_pieces_and_what_is_there_is_not_made_again(
    pictures: GlyphPictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latent_bank, "PIECE", 4)
    whole = opened(pictures, tmp_path / "whole", ranks=Ranks())
    folder = tmp_path / "shared"
    with pytest.raises(FileNotFoundError):  # the pieces of the other
        opened(pictures, folder, ranks=Waiting(rank=0, count=2))
    mine = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npy")}
    assert 0 < len(mine) < 6
    shared = opened(pictures, folder, ranks=Waiting(rank=1, count=2))
    assert np.array_equal(shared.latents, whole.latents)
    assert np.array_equal(shared.held_latents, whole.held_latents)
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npy")}
    assert {name: after[name] for name in mine} == mine


def test_a_bank_of_other_facts_is_refused_and_an_unfinished_one_has_no_scale(
    pictures: GlyphPictures, tmp_path: Path
) -> None:
    opened(pictures, tmp_path / "bank", ranks=Ranks())
    with pytest.raises(ConfigError, match=r"holds latents of .*'autoencoder'"):
        opened(pictures, tmp_path / "bank", weights=1, ranks=Ranks())
    changed = [replace(one, weight=one.weight * (1 + i)) for i, one in enumerate(pictures.records)]
    with pytest.raises(ConfigError, match=r"holds latents of .*'samples'"):
        opened(replace(pictures, records=changed), tmp_path / "bank", ranks=Ranks())
    with pytest.raises(DataError, match=r"scale.json is missing"):
        size_and_scale(tmp_path)


def test_latents_of_nothing_have_no_scale() -> None:
    with pytest.raises(DataError, match="sum to 0"):
        latent_bank._rms(np.zeros((3, 1, 1, 1), dtype=np.float16))
    assert latent_bank._rms(np.full((3, 2, 1, 1), 300, dtype=np.float16)) == pytest.approx(300)


def test_a_bank_grows_by_samples_behind_those_that_it_has(
    pictures: GlyphPictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latent_bank, "PIECE", 4)
    folder = tmp_path / "bank"
    small = opened(pictures, folder, count=6, ranks=Ranks())
    first, last = (folder / f"train-{number:07d}.npy" for number in (0, 4))
    before = first.stat().st_mtime_ns
    grown = opened(pictures, folder, count=11, ranks=Ranks())
    whole = opened(pictures, tmp_path / "whole", count=11, ranks=Ranks())
    assert whole.scaling_factor != small.scaling_factor
    assert grown.scaling_factor == small.scaling_factor == size_and_scale(folder)[1]
    assert len(set(map(repr, whole.samples))) > 4
    assert grown.samples == whole.samples
    assert list(grown.samples[:6]) == list(small.samples)
    assert np.array_equal(grown.latents[:6], small.latents)
    again = (whole.latents / whole.scaling_factor, grown.latents / grown.scaling_factor)
    np.testing.assert_allclose(*again, rtol=2e-3)
    assert first.stat().st_mtime_ns == before
    assert len(np.load(last)) == 4
    less = opened(pictures, folder, count=6, ranks=Ranks())
    assert less.samples == small.samples
    assert np.array_equal(less.latents, small.latents)
