"""Whole trainings: they learn, stop and go on as if they had not, split over ranks; the command."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch.testing import assert_close
from typer.testing import CliRunner

from sanakit.cli.main import app
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.discriminator import PatchDiscriminator
from sanakit.train import checkpoint
from sanakit.train.checkpoint import checkpoints, read_tensors
from sanakit.train.config import LoopConfig
from sanakit.train.loop import train
from sanakit.train.recipes.autoencoder import AutoencoderObjective, AutoencoderRecipe
from sanakit.train.recipes.autoencoder_run import start_autoencoder
from sanakit.train.sample_schedule import SampleSchedule
from tiny import AUTOENCODER
from tiny_autoencoder import TinySource
from tiny_recipe import TinyRecipe
from tiny_shards import write_shards

CONFIG = LoopConfig(
    batch_size=4,
    total_images=32,
    peak_lr=0.02,
    warmup_images=12,
    decay_share=0.5,
    average_halflife=20,
    compute_dtype="float32",
)


def quiet(line: str) -> None:
    """Take the place of print."""


def same_checkpoints(first: Path, second: Path) -> None:
    one, other = checkpoints(first)[-1], checkpoints(second)[-1]
    assert one.name == other.name
    for name in ("model", "optimizer", "average"):
        found, wanted = read_tensors(one, name), read_tensors(other, name)
        assert wanted
        assert_close(found, wanted, atol=0, rtol=0)


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stop", [1, 4])
def test_a_run_that_stops_and_resumes_is_bit_equal_to_one_that_did_not(
    tmp_path: Path, compute_dtype: Literal["float32", "bfloat16"], stop: int
) -> None:
    config = replace(CONFIG, compute_dtype=compute_dtype)
    train(TinyRecipe(), config, tmp_path / "whole", resume=False, report=quiet)
    halting = TinyRecipe(
        lambda count: signal.raise_signal(signal.SIGINT) if count == stop - 1 else None
    )
    assert not train(halting, config, tmp_path / "parts", resume=False, report=quiet)
    assert checkpoints(tmp_path / "parts")[-1].name.endswith(f"{4 * stop}")
    told: list[str] = []
    # Another start: nothing of it may be left.
    assert train(TinyRecipe(seed=9), config, tmp_path / "parts", resume=True, report=told.append)
    assert told[0].startswith(f"resumed at {4 * stop} images")
    same_checkpoints(tmp_path / "whole", tmp_path / "parts")


def test_a_run_killed_while_it_saves_goes_on_from_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(TinyRecipe(), CONFIG, tmp_path / "whole", resume=False, report=quiet)
    run = tmp_path / "parts"
    halting = TinyRecipe(lambda count: signal.raise_signal(signal.SIGTERM) if count == 2 else None)
    train(halting, CONFIG, run, resume=False, report=quiet)

    def killed(path: Path) -> None:
        if path.name == "manifest.json":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "sync", killed)
        with pytest.raises(KeyboardInterrupt):
            train(TinyRecipe(), CONFIG, run, resume=True, report=quiet)
    assert [path.name for path in checkpoints(run)] == ["checkpoint-0000000012"]
    train(TinyRecipe(), CONFIG, run, resume=True, report=quiet)
    same_checkpoints(tmp_path / "whole", run)


def fixed_loss(recipe: AutoencoderRecipe) -> float:
    """Of one large batch with one noise."""
    batch = next(recipe.stream(SampleSchedule(seed=77, batch_size=64)))
    with torch.no_grad():
        return float(recipe.loss(batch)["loss"])


def test_an_autoencoder_learns_a_few_pictures(tmp_path: Path) -> None:
    torch.manual_seed(0)
    recipe = AutoencoderRecipe(Autoencoder(AUTOENCODER), TinySource())
    before = fixed_loss(recipe)
    config = replace(CONFIG, total_images=160, peak_lr=5e-3, average_halflife=None)
    train(recipe, config, tmp_path, resume=False, report=quiet)
    assert fixed_loss(recipe) < 0.7 * before


def sanakit(*arguments: str, code: int) -> str:
    result = CliRunner().invoke(app, ["train", *arguments])
    assert result.exit_code == code, (result.output, result.exception)
    assert "Traceback" not in result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == result.stderr.count("hint: ") + 1
    return result.stderr


def test_refining_a_decoder_needs_an_encoder_that_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = sanakit("autoencoder", "--phase", "decoder", code=2)
    assert "hint: name what to begin with: --from glyph" in said


def test_weights_come_with_their_own_shape_and_pictures_must_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = sanakit("autoencoder", "--preset", "glyph", "--from", "glyph", code=2)
    assert "hint: weights come with their own shape" in said
    assert "--data is missing" in sanakit("autoencoder", code=2)
    assert list(tmp_path.iterdir()) == []


def test_shards_of_own_pictures_train_an_autoencoder_by_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Captured and differentiated as usual; only no C++ is written and compiled for it.
    plain = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module, **how: plain(module, backend="aot_eager", **how)
    )
    write_shards(tmp_path / "set" / "shards", {(64, 64): [4, 2], (64, 96): [2]})
    options = ["batch_size=2", "total_images=4", "perceptual=0", "side=64", "held=3"]
    pairs = [part for option in options for part in ("--set", option)]
    arguments = ["autoencoder", "--preset", "tiny", "--data", "set/shards", "--out", "run", *pairs]
    result = CliRunner().invoke(app, ["train", *arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    assert "held_seen_psnr" in result.output
    assert start_autoencoder(tmp_path / "run").config.scaling_factor != 1


def refinement() -> AutoencoderRecipe:
    torch.manual_seed(0)
    settings = AutoencoderObjective(
        phase="refine", adversarial=0.1, adversarial_delay=10, latent_noise=0.1, side=32
    )
    source, judge = TinySource(), PatchDiscriminator(4, 1)
    return AutoencoderRecipe(Autoencoder(AUTOENCODER), source, settings, discriminator=judge)


def test_a_run_with_a_discriminator_resumes_bit_equal(tmp_path: Path) -> None:
    config = replace(CONFIG, total_images=16, betas=(0.5, 0.9), compute_dtype="bfloat16")
    train(refinement(), config, tmp_path / "whole", resume=False, report=quiet)
    halting = refinement()
    honest = halting.prepare
    count = iter(range(10))

    def prepare(*arguments: Any) -> Any:
        if next(count) == 1:
            signal.raise_signal(signal.SIGINT)
        return honest(*arguments)

    halting.prepare = prepare  # type: ignore[method-assign]
    assert not train(halting, config, tmp_path / "parts", resume=False, report=quiet)
    assert train(refinement(), config, tmp_path / "parts", resume=True, report=quiet)
    same_checkpoints(tmp_path / "whole", tmp_path / "parts")
    names = read_tensors(checkpoints(tmp_path / "parts")[-1], "optimizer").keys()
    assert any(name.startswith("discriminator.last.weight") for name in names)
    assert not any(name.startswith("autoencoder.encoder") for name in names)


def test_the_embedded_autoencoder_is_tuned_by_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_shards(tmp_path / "set" / "shards", {(64, 64): [4, 2]})
    options = ["batch_size=2", "total_images=2", "perceptual=0", "side=64"]
    pairs = [part for option in options for part in ("--set", option)]
    arguments = ["autoencoder", "--phase", "decoder", "--from", "glyph", "--data", "set/shards"]
    result = CliRunner().invoke(app, ["train", *arguments, "--out", "run", *pairs])
    assert result.exit_code == 0, (result.output, result.exception)
    kept = start_autoencoder(tmp_path / "run")
    given = start_autoencoder("glyph")
    assert f"scaling factor {given.config.scaling_factor:.6f}" in result.output
    assert_close(kept.encoder.state_dict(), given.encoder.state_dict(), rtol=0, atol=0)
    assert not torch.equal(kept.decoder.conv_in.weight, given.decoder.conv_in.weight)
