"""The loop: rates, steps, averages, logs and what it refuses, on a recipe of a few weights."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from sanakit.errors import ConfigError, NumericsError
from sanakit.train import loop
from sanakit.train.checkpoint import checkpoints, read_manifest, read_tensors
from sanakit.train.config import LoopConfig, learning_rate, with_overrides
from sanakit.train.loop import Ending, train
from sanakit.train.sample_schedule import SampleSchedule
from tiny_recipe import TinyRecipe, weights

CONFIG = LoopConfig(
    batch_size=4,
    total_images=24,
    peak_lr=0.02,
    warmup_images=8,
    decay_share=0.5,
    compute_dtype="float32",
    log_every=2,
    evaluate_every=4,
)


def batch_of(seed: int, numbers: range) -> Tensor:
    """What the tiny recipe draws for samples of these numbers, written out."""
    generators = [torch.Generator().manual_seed(seed * 1_000_003 + k) for k in numbers]
    return torch.stack([torch.randn(2, 2, 4, 4, generator=one) for one in generators])


def quiet(line: str) -> None:
    """Take the place of print."""


def log_lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def saved(run: Path) -> dict[str, dict[str, Tensor]]:
    newest = checkpoints(run)[-1]
    found = {name: read_tensors(newest, name) for name in ("model", "optimizer", "average")}
    return {name: tensors for name, tensors in found.items() if tensors}


@pytest.mark.parametrize(
    ("images", "share"),
    [
        (0, 0.1),  # the first batch already moves
        (40, 0.5),
        (90, 1.0),
        (300, 1.0),
        (600, 1.0),
        (700, 0.75),
        (900, 0.25),
        (995, 0.02),
        (1000, 0.02),
    ],
)
def test_the_rate_warms_up_holds_falls_and_keeps_a_floor(images: int, share: float) -> None:
    config = LoopConfig(
        batch_size=10, total_images=1000, peak_lr=3.0, warmup_images=100, decay_share=0.4
    )
    assert learning_rate(config, images) == pytest.approx(3.0 * share)


def test_without_warmup_the_first_step_has_the_whole_rate() -> None:
    config = LoopConfig(batch_size=1, total_images=100, peak_lr=2.0)
    assert learning_rate(config, 0) == 2.0


def test_settings_are_read_by_their_types() -> None:
    pairs = ["batch_size=16", "peak_lr=1", "betas=[0.8, 0.9]", "average_halflife=500"]
    pairs += ["compile_blocks=true", "compute_dtype=float32", "decay_share=0.25"]
    changed = with_overrides(replace(CONFIG, compute_dtype="bfloat16"), pairs)
    assert changed == replace(
        CONFIG,
        batch_size=16,
        peak_lr=1,
        betas=(0.8, 0.9),
        average_halflife=500,
        compile_blocks=True,
        decay_share=0.25,
    )
    assert with_overrides(changed, ["average_halflife=null"]).average_halflife is None
    assert with_overrides(CONFIG, []) == CONFIG


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("batchsize=3", r"no setting 'batchsize'\n.*it is batch_size here"),
        ("batch_size=1.5", r"batch_size takes a value like 4\n.*its type is int"),
        ("batch_size=many", "batch_size takes a value like 4"),
        ("batch_size", "batch_size takes a value like 4"),
        ("batch_size=true", "batch_size takes a value like 4"),
        ("peak_lr=true", "peak_lr takes a value like 0.02"),
        ("peak_lr=[1]", "peak_lr takes a value like 0.02"),
        ("betas=0.9", r"betas takes a value like \(0.9, 0.99\)"),
        ("betas=[0.9]", r"betas=\(0.9,\) are 1, and adamw takes 2\n.*betas=\[0.9,0.99\]"),
        ("betas=[0.9, false]", "betas takes"),
        ("optimizer=came", r"are 2, and came takes 3\n.*0.9999"),
        ("optimizer=adam", r"optimizer takes .*\n.*'adamw', 'came'"),
        ("accumulation=0", "accumulation=0 must be at least 1"),
        ("save_minutes=0", "save_minutes=0 must be more than 0"),
        ("most_skipped=-1", "most_skipped=-1 must not be negative"),
        ("compile_blocks=1", "compile_blocks takes a value like False"),
        ("compute_dtype=bf16", r"compute_dtype takes .*\n.*'float32', 'bfloat16'"),
        ("average_halflife=long", r"average_halflife takes .*\n.*int \| None"),
        ("average_halflife=0", "average_halflife=0 must be at least 1"),
        ("log_every=0", "log_every=0 must be at least 1"),
        ("decay_share=0", r"decay_share=0 must be in \(0, 1\]"),
        ("decay_share=1.5", r"decay_share=1.5 must be in \(0, 1\]"),
    ],
)
def test_settings_of_another_type_are_refused(pair: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        with_overrides(CONFIG, [pair])


def test_steps_are_those_of_adamw_written_out(tmp_path: Path) -> None:
    recipe, slow = TinyRecipe(), TinyRecipe()
    config = replace(CONFIG, weight_decay=0.3, grad_clip=0.05, seed=3)
    assert train(recipe, config, tmp_path, resume=False, report=quiet)
    moments: dict[str, tuple[Tensor, Tensor]] = {}
    named = dict(slow.module.named_parameters())
    for step in range(6):
        slow.loss(batch_of(3, range(4 * step, 4 * step + 4)))["loss"].backward()
        gradients = {name: p.grad for name, p in named.items() if p.grad is not None}
        norm = torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt()
        assert norm > config.grad_clip  # or clipping is not tested
        rate = learning_rate(config, 4 * step)
        for name, gradient in gradients.items():
            clipped = gradient * config.grad_clip / norm
            first, second = moments.get(name, (torch.zeros(()), torch.zeros(())))
            first = 0.9 * first + 0.1 * clipped
            second = 0.99 * second + 0.01 * clipped**2
            moments[name] = first, second
            first, second = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.99 ** (step + 1))
            decay = config.weight_decay if gradient.ndim > 1 else 0.0
            with torch.no_grad():
                named[name] -= rate * (decay * named[name] + first / (second.sqrt() + 1e-8))
        slow.module.zero_grad()
    assert_close(weights(recipe.module), weights(slow.module), atol=2e-5, rtol=1e-4)


def test_the_average_follows_its_formula_and_evaluation_sees_it(tmp_path: Path) -> None:
    seen: list[dict[str, Tensor]] = []
    recipe = TinyRecipe(lambda count: seen.append(weights(recipe.module)))
    config = replace(CONFIG, batch_size=10, total_images=300, average_halflife=20, log_every=100)
    train(recipe, config, tmp_path, resume=False, report=quiet)
    seen.append(weights(recipe.module))
    average = {name: value.double() for name, value in seen[0].items()}
    for step, now in enumerate(seen[1:], start=1):
        halflife = min(20, max(1, 10 * step // 10))
        keep = 0.5 ** (10 / halflife)
        average = {name: keep * average[name] + (1 - keep) * now[name] for name in now}
    floats = [name for name, value in seen[0].items() if value.is_floating_point()]
    found = saved(tmp_path)["average"]
    for name in floats:
        assert_close(found[name].double(), average[name], atol=1e-6, rtol=1e-5)
        assert not torch.equal(found[name], seen[-1][name])
        assert torch.equal(recipe.evaluated[-1][name], found[name])
    assert_close(saved(tmp_path)["model"], seen[-1], atol=0, rtol=0)


def test_without_an_average_evaluation_sees_the_weights(tmp_path: Path) -> None:
    recipe = TinyRecipe()
    train(recipe, CONFIG, tmp_path, resume=False, report=quiet)
    assert set(saved(tmp_path)) == {"model", "optimizer"}
    assert_close(recipe.evaluated[-1], weights(recipe.module), atol=0, rtol=0)
    assert recipe.module.training


def test_an_average_asked_for_later_starts_at_the_weights_of_then(tmp_path: Path) -> None:
    train(TinyRecipe(), CONFIG, tmp_path, resume=False, report=quiet)
    before = saved(tmp_path)["model"]
    more = replace(CONFIG, total_images=28, average_halflife=10**6)
    # Nearly nothing of the one step enters: min(halflife, images / 10) is 2 images at 28.
    recipe = TinyRecipe(seed=1)
    train(recipe, more, tmp_path, resume=True, report=quiet)
    expected = torch.lerp(before["0.weight"], recipe.module[0].weight.detach(), 1 - 0.5**2)
    assert_close(saved(tmp_path)["average"]["0.weight"], expected)


def test_the_log_has_means_and_evaluations_at_their_steps(tmp_path: Path) -> None:
    recipe = TinyRecipe()
    told: list[str] = []
    train(recipe, CONFIG, tmp_path, resume=False, report=told.append)
    lines = log_lines(tmp_path)
    assert [line["images"] for line in lines] == [8, 16, 16, 24, 24]
    assert ["held_loss" in line for line in lines] == [False, False, True, False, True]
    assert told[0].startswith("step 1/6, ")
    assert told[0].endswith(" left")
    assert len(told) == 1 + len(lines)  # the next word on progress comes after ten seconds
    for line in (lines[0], lines[1], lines[3]):
        assert line["twice"] == pytest.approx(2 * line["loss"], abs=2e-5)
        assert line["grad_norm"] > 0
        assert line["lr"] == pytest.approx(learning_rate(CONFIG, int(line["images"])), rel=1e-2)
    slow = TinyRecipe()
    first = slow.loss(batch_of(0, range(4)))["loss"].detach()
    short = tmp_path / "short"
    one = replace(CONFIG, total_images=4, log_every=1)
    train(TinyRecipe(), one, short, resume=False, report=quiet)
    assert log_lines(short)[0]["loss"] == pytest.approx(float(first), abs=1e-5)


def spoil(recipe: TinyRecipe, when: list[int]) -> None:
    """Make the loss of some batches not a number."""

    def watch(count: int) -> None:
        recipe.bad = count in when

    honest = recipe.loss
    recipe.watch = watch

    def loss(batch: Tensor) -> dict[str, Tensor]:
        scalars = honest(batch)
        return {"loss": scalars["loss"] * (float("nan") if recipe.bad else 1.0)}

    recipe.loss = loss


def test_a_gradient_that_is_not_finite_skips_its_step(tmp_path: Path) -> None:
    recipe = TinyRecipe()
    spoil(recipe, [0])
    before = {name: p.detach().clone() for name, p in recipe.module.named_parameters()}
    short = replace(CONFIG, total_images=4)
    train(recipe, short, tmp_path, resume=False, report=quiet)
    assert_close(dict(recipe.module.named_parameters()), before, atol=0, rtol=0)
    assert "optimizer" not in saved(tmp_path)
    # The gradient is forgotten: the next step is clean.
    train(recipe, CONFIG, tmp_path, resume=True, report=quiet)
    assert all(torch.isfinite(p).all() for p in recipe.module.parameters())
    assert not torch.equal(recipe.module[0].weight, before["0.weight"])


@pytest.mark.parametrize(("bad", "stops"), [(20, False), (21, True)])
def test_more_than_twenty_of_them_end_the_run(tmp_path: Path, bad: int, stops: bool) -> None:
    recipe = TinyRecipe()
    spoil(recipe, list(range(bad)))
    config = replace(CONFIG, total_images=100)
    if not stops:
        assert train(recipe, config, tmp_path, resume=False, report=quiet)
        return
    with pytest.raises(NumericsError, match=r"not finite in 21 steps in a row, the last at 80"):
        train(recipe, config, tmp_path, resume=False, report=quiet)


def test_a_run_is_not_overwritten_and_a_finished_one_does_nothing(tmp_path: Path) -> None:
    recipe = TinyRecipe()
    train(recipe, CONFIG, tmp_path, resume=False, report=quiet)
    with pytest.raises(ConfigError, match=r"already holds a run\n.*--resume"):
        train(recipe, CONFIG, tmp_path, resume=False, report=quiet)
    drawn, files = recipe.count, sorted(tmp_path.rglob("*"))
    assert train(recipe, CONFIG, tmp_path, resume=True, report=quiet)
    assert recipe.count == drawn
    assert sorted(tmp_path.rglob("*")) == files


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint(
    tmp_path: Path, number: signal.Signals
) -> None:
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    recipe = TinyRecipe(lambda count: signal.raise_signal(number) if count == 2 else None)
    # Who sends a signal may soon send a harder one: nothing comes between the step and the save.
    recipe.evaluate = recipe.validation_grid = None  # type: ignore[assignment,method-assign]
    ending = train(recipe, CONFIG, tmp_path, resume=False, report=quiet)
    assert not ending
    assert ending == (Ending.TERMINATED if number == signal.SIGTERM else Ending.INTERRUPTED)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-0000000012"]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_checkpoints_come_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minutes = iter(range(1000))
    clock = SimpleNamespace(monotonic=lambda: 60.0 * next(minutes))
    monkeypatch.setattr(loop, "time", clock)
    found: list[int] = []
    recipe = TinyRecipe(lambda count: found.append(len(checkpoints(tmp_path))))
    train(recipe, replace(CONFIG, save_minutes=2.5), tmp_path, resume=False, report=quiet)
    assert found == [0, 0, 0, 1, 1, 1]
    assert read_manifest(checkpoints(tmp_path)[-1])["seconds"] == 360.0
    # The clock of a resumed run goes on.
    train(TinyRecipe(), replace(CONFIG, total_images=28), tmp_path, resume=True, report=quiet)
    assert read_manifest(checkpoints(tmp_path)[-1])["seconds"] == 420.0


def test_a_batch_that_does_not_split_over_the_ranks_is_refused(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match=r"batch_size=4 does not split over 3 ranks\n.*of 3"):
        SampleSchedule(seed=0, batch_size=4, ranks=3)
    config = replace(CONFIG, accumulation=3)
    with pytest.raises(ConfigError, match=r"over 1 ranks in 3 parts each\n"):
        train(TinyRecipe(), config, tmp_path, resume=False, report=quiet)


def test_only_blocks_are_compiled_and_only_if_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: compiled.append(self))
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 8)
    recipe = TinyRecipe()
    short = replace(CONFIG, total_images=4)
    train(recipe, short, tmp_path / "plain", resume=False, report=quiet)
    assert compiled == []
    quick = replace(short, compile_blocks=True)
    train(recipe, quick, tmp_path / "quick", resume=False, report=quiet)
    assert compiled == [recipe.module[0]]
