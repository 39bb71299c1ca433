"""`sanakit train autoencoder`: what it plans without a trace, and notes beside its run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from command_line import sanakit
from sanakit.errors import ConfigError
from sanakit.models.perceptual import PerceptualNetwork
from sanakit.train.checkpoint import checkpoints
from sanakit.train.recipes import autoencoder_run
from sanakit.train.runs.run_config import read_run
from sanakit.train.runs.summary import summary_of_run
from tiny import AUTOENCODER
from tiny_recipe import TinyRecipe
from tiny_shards import write_shards

SHORT = ["device=cpu", "batch_size=2", "total_images=4", "compute_dtype=float32", "log_every=1"]
OWN = [*SHORT, "compile_blocks=false", "held=2", "side=64"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(autoencoder_run, "AUTOENCODERS", {"glyph": AUTOENCODER})
    return tmp_path


@pytest.fixture
def shards(place: Path) -> Path:
    return write_shards(place / "own" / "shards", {(64, 64): [4, 2], (64, 96): [2]})


def train(*arguments: object, settings: list[str] = OWN, code: int = 0) -> str:
    """What the command says; of one that fails, its error."""
    pairs = [part for setting in settings for part in ("--set", setting)]
    out, error = sanakit("train", *arguments, *pairs, code=code)
    return error if code else out


def listed(place: Path) -> list[Path]:
    return sorted(place.rglob("*"))


def fields_of(run: Path) -> dict[str, Any]:
    file = read_run(run)
    return {**file["objective"], **file["loop"]}


def test_an_autoencoder_of_own_shards_is_planned_with_its_buckets_and_its_judges(
    shards: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = PerceptualNetwork(((4,), (6,)))
    monkeypatch.setattr(autoencoder_run, "load_perceptual", lambda: judge)
    before = listed(place)
    told = train("autoencoder", "--data", shards, "--dry-run", "--workers", "1", settings=OWN)
    fixed = sum(p.numel() for p in judge.parameters())
    assert f"learn, {fixed:,} are frozen" in told
    size = sum(p.nbytes for p in judge.parameters())
    assert f"frozen parts {size / 1e6:.2f} MB" in told
    assert "bucket      64 x 64 px: 6 samples\nbucket      64 x 96 px: 2 samples\n" in told
    assert "epoch       4 steps" in told
    assert "0.5 epochs" in told
    assert "time        not measured" in train(
        "autoencoder", "--data", shards, "--dry-run", "--no-measure", settings=OWN
    )
    assert listed(place) == before


def test_an_autoencoder_s_run_holds_all_it_was_told_and_goes_on_without_being_told(
    place: Path, shards: Path
) -> None:
    given = [*OWN, "perceptual=0", "l2=0.25", "pooled=0.5"]
    train("autoencoder", "--data", "own/shards", "--out", "run", settings=given)
    file, fields = read_run("run"), fields_of(Path("run"))
    assert file["what"] == "autoencoder"
    assert file["data"] == {"data": str(shards), "phase": "full"}
    assert {k: fields[k] for k in ("l1", "l2", "pooled", "perceptual", "side", "mirror")} == {
        "l1": 1.0,
        "l2": 0.25,
        "pooled": 0.5,
        "perceptual": 0,
        "side": 64,
        "mirror": True,
    }
    # The loop's, published ones of the phase included.
    assert (fields["peak_lr"], fields["weight_decay"], fields["batch_size"]) == (6.4e-5, 0.1, 2)
    changed = summary_of_run(Path("run")).changed
    assert changed["l2"] == 0.25
    assert not changed.keys() & {"l1", "mirror", "latent_noise"}
    told = train("autoencoder", "--resume", "--out", "run", settings=["total_images=6"])
    assert "resumed at 4 images" in told
    assert checkpoints(Path("run"))[-1].name.endswith("6")
    after = fields_of(Path("run"))
    assert after == {**fields, "total_images": 6}
    refused = train("autoencoder", "--resume", "--out", "run", settings=["l2=1"], code=2)
    assert "--set l2 was 0.25 when the run began, and is 1" in refused
    refused = train("autoencoder", "--resume", "--out", "run", "--phase", "refine", code=2)
    assert "--phase was full" in refused
    again = ("--data", "own/shards", "--out", "run")
    assert "already holds a run" in train("autoencoder", *again, code=2)


def test_a_phase_is_gone_on_with_from_its_folder_alone(place: Path, shards: Path) -> None:
    data = ("--data", shards)
    train("autoencoder", *data, "--out", "first", settings=[*OWN, "perceptual=0"])
    given = [*OWN, "perceptual=0", "adversarial=0", "adversarial_delay=0"]
    told = ("--from", "first", "--phase", "refine", "--out", "run")
    train("autoencoder", *data, *told, settings=given)
    assert read_run("run")["data"]["start"] == str(place / "first")
    told = train("autoencoder", "--resume", "--out", "run", settings=["total_images=6"])
    assert "resumed at 4 images" in told
    # Still the refinement: of the encoder nothing has moved.
    scales = [
        json.loads((place / run / "vae" / "config.json").read_text())["scaling_factor"]
        for run in ("first", "run")
    ]
    assert scales[0] == scales[1]


def test_no_measure_is_refused_without_a_dry_run(place: Path) -> None:
    assert "--no-measure is of --dry-run" in train(
        "autoencoder", "--no-measure", settings=[], code=2
    )


def test_a_recipe_that_cannot_recompute_says_so() -> None:
    with pytest.raises(ConfigError, match="nothing to recompute"):
        TinyRecipe().checkpoint_gradients()
