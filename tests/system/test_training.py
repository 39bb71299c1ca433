"""Whole trainings: they learn, stop and go on as if they had not, split over ranks; the command."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from sanakit.train.checkpoint import checkpoints, read_manifest, read_tensors
from torch.testing import assert_close
from typer.testing import CliRunner

from sanakit.cli.main import app
from sanakit.data.glyph.pictures import GlyphPictures
from sanakit.models.autoencoder import Autoencoder
from sanakit.train import state
from sanakit.train.autoencoder import AutoencoderRecipe
from sanakit.train.diffusion import DiffusionRecipe, cache_latents
from sanakit.train.loop import train
from sanakit.train.settings import LoopConfig
from tiny import AUTOENCODER, tiny_components
from tiny_pictures import tiny_pictures, tiny_record, write_pictures
from tiny_recipe import TinyRecipe

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
    names = sorted(path.name for path in one.glob("*.safetensors"))
    assert names == ["average.safetensors", "model.safetensors", "optimizer.safetensors"]
    assert_close(load_checkpoint(one)[1], load_checkpoint(other)[1], atol=0, rtol=0)


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
        if path.name == "optimizer.safetensors":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(state, "_sync", killed)
        with pytest.raises(KeyboardInterrupt):
            train(TinyRecipe(), CONFIG, run, resume=True, report=quiet)
    assert [path.name for path in checkpoints(run)] == ["checkpoint-0000000012"]
    train(TinyRecipe(), CONFIG, run, resume=True, report=quiet)
    same_checkpoints(tmp_path / "whole", run)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> GlyphPictures:
    return tiny_pictures(tmp_path_factory.mktemp("data"))


def fixed_loss(recipe: AutoencoderRecipe | DiffusionRecipe) -> float:
    """Of one large batch with one noise."""
    generator = torch.Generator().manual_seed(77)
    with torch.no_grad():
        return float(recipe.loss(recipe.draw(64, generator), generator)["loss"])


def test_an_autoencoder_learns_a_few_pictures(tmp_path: Path, pictures: GlyphPictures) -> None:
    torch.manual_seed(0)
    recipe = AutoencoderRecipe(Autoencoder(AUTOENCODER), pictures)
    before = fixed_loss(recipe)
    config = replace(CONFIG, total_images=160, peak_lr=5e-3, average_halflife=None)
    train(recipe, config, tmp_path, resume=False, report=quiet)
    assert fixed_loss(recipe) < 0.7 * before


def diffusion_recipe(pictures: GlyphPictures) -> DiffusionRecipe:
    torch.manual_seed(0)
    latents = cache_latents(Autoencoder(AUTOENCODER).eval(), pictures)
    parts = tiny_components()
    llm, tokenizer = parts.prompts.text_encoder.llm, parts.prompts.tokenizer
    for module in (parts.transformer, llm):
        module.requires_grad_(True)
    return DiffusionRecipe(parts.transformer, llm, tokenizer, pictures, latents)


def test_a_diffusion_transformer_learns_a_few_latents(
    tmp_path: Path, pictures: GlyphPictures
) -> None:
    recipe = diffusion_recipe(pictures)
    before = fixed_loss(recipe)
    config = replace(CONFIG, batch_size=16, total_images=640, average_halflife=None)
    train(recipe, config, tmp_path, resume=False, report=quiet)
    assert fixed_loss(recipe) < 0.8 * before


def test_a_diffusion_run_resumes_bit_equal_with_its_captions_and_its_noise(
    tmp_path: Path, pictures: GlyphPictures
) -> None:
    config = replace(CONFIG, total_images=16, compute_dtype="bfloat16")
    train(diffusion_recipe(pictures), config, tmp_path / "whole", resume=False, report=quiet)
    halting = diffusion_recipe(pictures)
    honest = halting.draw
    count = iter(range(10))

    def draw(size: int, generator: torch.Generator) -> object:
        if next(count) == 1:
            signal.raise_signal(signal.SIGINT)
        return honest(size, generator)

    halting.draw = draw
    assert not train(halting, config, tmp_path / "parts", resume=False, report=quiet)
    assert train(diffusion_recipe(pictures), config, tmp_path / "parts", resume=True, report=quiet)
    same_checkpoints(tmp_path / "whole", tmp_path / "parts")


RANK = """
import os, signal, sys
from pathlib import Path
import torch
from torch import nn
from sanakit.train.loop import train
from sanakit.train.settings import LoopConfig

class Halves:
    '''Rank r draws the r-th part of a batch that all ranks know.'''
    def __init__(self):
        torch.manual_seed(0)
        self.module = nn.Linear(3, 2)
        self.module.register_parameter("unused", nn.Parameter(torch.ones(1)))  # no gradient
        self.count, self.seeds, self.stop_at = 0, [], None
    def draw(self, size, generator):
        self.seeds.append(generator.initial_seed())
        if self.count == self.stop_at:
            signal.raise_signal(signal.SIGTERM)
        whole = torch.randn(8, 3, generator=torch.Generator().manual_seed(self.count))
        self.count += 1
        start = size * int(os.environ.get("RANK", 0))
        return whole[start : start + size]
    def loss(self, batch, generator):
        return {"loss": (self.module(batch) - batch[:, :2].exp()).square().mean()}
    def evaluate(self, module):
        return {}
    def blocks(self):
        return iter(())

run, rank = Path(sys.argv[1]), os.environ.get("RANK", "alone")
recipe = Halves()
config = LoopConfig(batch_size=8, total_images=40, peak_lr=0.1, grad_clip=0.3, log_every=1,
                    compute_dtype="float32", average_halflife=16)
train(recipe, config, run, resume=False, report=lambda line: None)
torch.save({"seeds": recipe.seeds, **recipe.module.state_dict()}, run / f"rank-{rank}.pt")
told = Halves()
told.stop_at = 1 if rank == "1" else None  # only one of them is told to stop
train(told, config, run / "told", resume=False, report=lambda line: None)
"""


def test_two_ranks_take_the_steps_of_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    plain = {**os.environ, "OMP_NUM_THREADS": "1"}
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    starts = [(tmp_path / "two", {**plain, **shared, "RANK": rank}) for rank in ("0", "1")]
    starts.append((tmp_path / "one", plain))
    running = [
        subprocess.Popen([sys.executable, "-W", "ignore", "-c", RANK, str(run)], env=environment)
        for run, environment in starts
    ]
    assert [process.wait(timeout=600) for process in running] == [0, 0, 0]
    alone = torch.load(tmp_path / "one" / "rank-alone.pt")
    ranks = [torch.load(tmp_path / "two" / f"rank-{rank}.pt") for rank in (0, 1)]
    seeds = [state.pop("seeds") for state in (alone, *ranks)]
    assert seeds[0] == seeds[1]
    assert len({*seeds[1], *seeds[2]}) == 10  # no two batches of a run share their randomness
    assert_close(ranks[0], ranks[1], atol=0, rtol=0)
    assert_close(ranks[0], alone, atol=1e-6, rtol=1e-5)
    assert [path.name for path in checkpoints(tmp_path / "two")] == ["checkpoint-0000000040"]
    assert [path.name for path in checkpoints(tmp_path / "two/told")] == ["checkpoint-0000000016"]
    # Only the first rank writes the log: a line a step and the evaluation at the end.
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert len(logs[0]) == len(logs[1]) == 6
    # Adam does not see the size of a gradient; the log does.
    for one, two in zip(logs[0][:5], logs[1][:5], strict=True):
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], abs=2e-5)


def sanakit(*arguments: str, code: int) -> str:
    result = CliRunner().invoke(app, ["train", *arguments])
    assert result.exit_code == code, (result.output, result.exception)
    assert "Traceback" not in result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == result.stderr.count("hint: ") + 1
    return result.stderr


@pytest.mark.parametrize("stage", ["tokenizer", "lm", "autoencoder", "diffusion", "export"])
def test_an_unknown_recipe_or_an_absent_data_set_ends_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no recipe 'glyhp'\nhint: recipes: glyph" in sanakit(stage, "glyhp", code=2)
    assert "missing" in sanakit(stage, code=2) or stage == "tokenizer"
    assert list(tmp_path.iterdir()) == []


def test_a_stage_without_the_one_before_ends_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "data", [tiny_record(0)], size=4)
    said = sanakit("diffusion", "--data", "data", code=3)
    assert "glyph-autoencoder holds no checkpoint\nhint: train that stage first" in said
    said = sanakit("lm", "--data", "data", code=2)
    assert "rows.npy is missing\nhint: run `sanakit train tokenizer` first" in said
    (tmp_path / "runs").mkdir()
    np.savez(tmp_path / "runs" / "latents.npz", scaling_factor=1.0)
    said = sanakit("export", "--data", "data", "--diffusion", "runs", code=3)
    assert "glyph-autoencoder holds no checkpoint" in said


@pytest.mark.parametrize(
    ("setting", "said"), [("batchsize=3", "no setting"), ("betas=1", "betas takes a value")]
)
def test_a_wrong_setting_ends_before_the_run_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = np.full((4, 8), 5, dtype=np.uint16)
    (tmp_path / "data" / "text").mkdir(parents=True)
    for name in ("rows", "held"):
        np.save(tmp_path / "data" / "text" / f"{name}.npy", rows)
    assert said in sanakit("lm", "--data", "data", "--set", setting, code=2)
    assert not (tmp_path / "runs").exists()


def test_refining_a_decoder_needs_an_encoder_that_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = sanakit("autoencoder", "--phase", "decoder", code=2)
    assert "hint: name the run to begin with: --from" in said
