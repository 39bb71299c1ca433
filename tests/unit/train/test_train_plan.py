"""Costs of a run before it begins, and the share of the peak while it goes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from command_line import sanakit
from sanakit.errors import ConfigError
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.flops import transformer_flops
from sanakit.nn.cpu import PointConv
from sanakit.train import mfu
from sanakit.train.config import LoopConfig
from sanakit.train.loop import train
from sanakit.train.mfu import SeenShapes, counted, model_share, peak_of, training_factor
from sanakit.train.optim.build import build_optimizer, state_bytes
from sanakit.train.recipes.autoencoder import AutoencoderBatch, AutoencoderRecipe
from sanakit.train.recipes.shard_dataset import ShardSource
from sanakit.train.runs import plan
from sanakit.train.runs.log import read_log
from sanakit.train.runs.plan import STATE_BYTES, Memory, Plan, plan_of
from sanakit.train.sample_schedule import SampleSchedule
from tiny import AUTOENCODER
from tiny_recipe import TinyRecipe, drawn
from tiny_sana import TinySana, tiny_sana

CPU = torch.device("cpu")


@pytest.fixture
def units(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that computes 16-bit products, which autocast then copies weights for."""
    monkeypatch.setattr("sanakit.train.distributed.network.has_units", lambda dtype: True)


CONFIG = LoopConfig(
    batch_size=4, total_images=22, peak_lr=1e-2, compute_dtype="float32", device="cpu"
)


class Line(TinyRecipe):
    """A linear layer of 4 x 4: all that its forward pass keeps can be counted by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(4, 4, bias=False)

    def stream(self, schedule: SampleSchedule) -> Iterator[Tensor]:
        for span in schedule.spans():
            yield torch.ones(len(span), 4)

    def loss(self, batch: Tensor) -> dict[str, Tensor]:
        return {"loss": self.module(batch).square().mean()}

    def blocks(self) -> Iterator[nn.Module]:
        yield self.module

    def flops(self) -> float:
        return 32.0


class Chain(Line):
    """Two layers that a test chooses."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.module = nn.Sequential(*layers)

    def blocks(self) -> Iterator[nn.Module]:
        yield from self.module


class Told(nn.Module):
    """A block that is told something beside its input."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, outputs, bias=False)

    def forward(self, x: Tensor, beside: Tensor) -> Tensor:
        return self.layer(x) + beside.sum()


@pytest.fixture(scope="module")
def sana(tmp_path_factory: pytest.TempPathFactory) -> TinySana:
    return tiny_sana(tmp_path_factory.mktemp("plan"))


def test_a_product_counts_two_operations_for_each_multiplication() -> None:
    assert counted(lambda: nn.Linear(3, 5)(torch.zeros(7, 3))) == 2 * 3 * 5 * 7


def test_operations_of_a_transformer_are_those_of_its_real_forward_pass(sana: TinySana) -> None:
    recipe = sana.recipe()
    assert recipe.flops() == 0
    batch = drawn(recipe, 4)
    recipe.loss(batch)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        recipe._errors(recipe.module, batch)
    assert recipe.flops() == counter.get_total_flops() / 4
    assert batch.text is not None
    shape = batch.noise.shape[-2:]
    # The products of cross-attention among them, which a CPU's own kernel hides from the counter.
    assert recipe.flops() == transformer_flops(
        recipe.module.config, (shape[0], shape[1]), batch.text.shape[1]
    )


def test_operations_of_an_autoencoder_are_those_of_its_real_forward_pass() -> None:
    recipe = AutoencoderRecipe(Autoencoder(AUTOENCODER), ShardSource(lambda schedule: ()))
    side = 4 * AUTOENCODER.spatial_factor
    batch = AutoencoderBatch(torch.zeros(2, 3, side, side), torch.zeros(2, 2), torch.ones(2), None)
    recipe.loss(batch)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        recipe.autoencoder(batch.image)
    assert recipe.flops() == counter.get_total_flops() / 2


def test_operations_are_the_mean_over_the_samples_of_each_shape() -> None:
    seen = SeenShapes(lambda shapes: float(shapes[0][0]))
    assert seen.mean() == 0
    seen.add(3, (10,))
    seen.add(1, (30,))
    assert seen.mean() == 15
    for size in range(100, 200):
        seen.add(1, (size,))
    assert seen.mean() == pytest.approx((60 + sum(range(100, 106))) / 10)


def test_training_is_three_forward_passes_and_fewer_for_a_lora() -> None:
    assert training_factor(10, 10) == 3
    assert training_factor(10, 10, recomputed=True) == 4
    assert training_factor(1, 10) == pytest.approx(2.1)


def test_what_a_forward_pass_keeps_is_counted_without_the_weights() -> None:
    plan = plan_of(Line(), CONFIG, device=CPU, measure=False)
    memory = plan.memory
    # The layer's input and its output, four numbers each.
    assert memory.activations == 32
    assert (memory.weights, memory.gradients, memory.states) == (64, 64, 8 * 16)
    assert (memory.block_inputs, memory.copies, memory.average) == (16, 0, 0)
    assert plan.flops == 96
    assert (plan.steps, plan.per_second) == (6, None)


HALF = replace(CONFIG, compute_dtype="bfloat16", average_halflife=10)


@pytest.mark.usefixtures("units")
@pytest.mark.parametrize("learns", [True, False])
def test_weights_that_autocast_copies_do_not_grow_with_the_batch(learns: bool) -> None:
    """Told from activations by where they come from: here one has the weight's own shape."""
    recipe = Chain(nn.Linear(4, 6, bias=False), nn.Linear(6, 1, bias=False))
    recipe.module[1].requires_grad_(learns)
    memory = plan_of(recipe, HALF, device=CPU, measure=False).memory
    assert memory.copies == 2 * 6
    # The input, what is between the layers if a weight wants it, and the output.
    assert memory.activations == 2 * 4 + 2 * 6 * learns + 2 * 1
    assert memory.average == 4 * (24 + 6)
    full = plan_of(recipe, CONFIG, device=CPU, measure=False).memory
    assert (full.copies, full.activations) == (0, 2 * memory.activations)


@pytest.mark.usefixtures("units")
@pytest.mark.parametrize("learns", [True, False])
def test_a_copy_is_known_in_another_shape_than_its_weight(learns: bool) -> None:
    point = PointConv(6, 3, bias=False).requires_grad_(learns)
    layers = nn.Linear(4, 6, bias=False), nn.Unflatten(1, (6, 1, 1)), point
    assert plan_of(Chain(*layers), HALF, device=CPU, measure=False).memory.copies == 2 * 18


def test_an_input_that_looks_like_a_frozen_weight_is_still_no_copy_in_full_precision() -> None:
    layers = nn.Linear(4, 6, bias=False), nn.Linear(6, 4, bias=False).requires_grad_(False)
    layers[1].weight = nn.Parameter(torch.ones(1, 6), requires_grad=False)
    memory = plan_of(Chain(*layers), CONFIG, device=CPU, measure=False).memory
    assert memory.copies == 0


def test_inputs_of_all_blocks_are_added_and_what_all_of_them_are_told_is_not() -> None:
    recipe = Chain(Told(4, 6), Told(6, 2))

    def loss(batch: Tensor) -> dict[str, Tensor]:
        beside = torch.ones(100)
        first, second = recipe.module
        return {"loss": second(first(batch, beside), beside).mean()}

    recipe.loss = loss  # type: ignore[method-assign]
    memory = plan_of(recipe, CONFIG, device=CPU, measure=False).memory
    assert memory.block_inputs == 4 * 4 + 4 * 6
    assert memory.blocks == 2
    # FSDP holds the largest of them.
    assert memory.gathered == 4 * 24
    # Nothing watches the module any longer.
    assert not any(block._forward_pre_hooks for block in recipe.blocks())


def test_the_rate_is_of_whole_steps_behind_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    recipe = Chain(nn.Linear(4, 4))
    recipe.watch = counts.append
    begun = [0.0]

    def now(device: torch.device) -> float:
        begun.append(len(counts))
        return begun[-1]

    monkeypatch.setattr(plan, "_now", now)
    config = replace(CONFIG, accumulation=2)
    found = plan_of(recipe, config, device=CPU)
    # One sample to measure, then a first step of two parts; three steps are between the clocks.
    assert begun == [0.0, 1, 3, 5, 7, 9]
    assert found.per_second == 3 * 4 / 6
    assert found.mfu == model_share(recipe, 2.0, CPU, "float32")


def test_slow_steps_are_measured_until_enough_time_is_spent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts: list[int] = []
    recipe = Chain(nn.Linear(4, 4))
    recipe.watch = counts.append
    monkeypatch.setattr(plan, "_now", lambda device: 15.0 * len(counts))
    assert plan_of(recipe, CONFIG, device=CPU).per_second == CONFIG.batch_size / 15
    assert len(counts) == 1 + 2
    counts.clear()
    monkeypatch.setattr(plan, "_now", lambda device: 100.0 * len(counts))
    assert plan_of(recipe, CONFIG, device=CPU).per_second == CONFIG.batch_size / 100
    assert len(counts) == 1 + 1


def test_more_than_all_that_a_device_can_do_is_no_share(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Chain(nn.Linear(4, 4))
    monkeypatch.setattr(recipe, "flops", lambda: 1e9)
    monkeypatch.setattr("sanakit.train.mfu.peak_of", lambda *about: 3e10)
    assert model_share(recipe, 10.0, CPU, "float32") == 1.0
    assert model_share(recipe, 10.1, CPU, "float32") is None


def test_a_batch_that_does_not_split_into_its_parts_is_refused_first() -> None:
    watched: list[int] = []
    recipe = Line()
    recipe.watch = watched.append
    with pytest.raises(ConfigError, match="batch_size=4 does not split"):
        plan_of(recipe, replace(CONFIG, accumulation=3), device=CPU)
    assert watched == []


def test_a_plan_is_told_in_lines() -> None:
    config = replace(
        CONFIG, batch_size=32, total_images=1000, accumulation=2, gradient_checkpointing=True
    )
    memory = Memory(
        weights=4e9,
        gradients=2e9,
        states=5e6,
        average=0,
        copies=0.1e9,
        frozen=99.99e6,
        activations=4e6,
        block_inputs=1e6,
        blocks=4,
        gathered=3e6,
    )
    told = Plan(
        config=config,
        trained=1234,
        fixed=56,
        flops=1.5e9,
        memory=memory,
        buckets=[(64, 64 + number, 100 - number) for number in range(8)],
        batches_per_epoch=25,
        per_second=10.0,
        mfu=0.123,
    )
    assert told.lines() == [
        "parameters  1,234 learn, 56 are frozen",
        "operations  1.5e+09 FLOPs to train on one image, blocks recomputed",
        "memory      weights 4.00 GB, gradients 2.00 GB, adamw 5.00 MB, copies in float32 0.10 GB, "
        "frozen parts 99.99 MB, activations an image 2.00 MB",
        # Kept, two gathered blocks, frozen parts, and the activations of 16 or 2.
        "  a rank of 1  16 images at a time: ddp 6.24 GB",
        "  a rank of 8  2 images at a time: ddp 6.21 GB, fsdp 0.87 GB, hsdp 0.87 GB",
        *(f"bucket      64 x {64 + n} px: {100 - n} samples" for n in range(6)),
        "bucket      2 more: 187 samples",
        "epoch       25 steps",
        "run         32 steps of 32, 1,000 images, 1.28 epochs",
        "time        1 min 40 s at 10 images/s on one rank, MFU 12.3%",
    ]
    bare = replace(told, flops=0.0, buckets=(), batches_per_epoch=None, mfu=None)
    assert bare.lines()[-2:] == [
        "run         32 steps of 32, 1,000 images",
        "time        1 min 40 s at 10 images/s on one rank",
    ]
    assert not any(line.startswith(("operations", "bucket")) for line in bare.lines())


def test_shards_divide_what_is_kept_and_not_what_is_computed() -> None:
    memory = plan_of(Line(), CONFIG, device=CPU, measure=False).memory
    kept, each = 64 + 64 + 128, 32

    def of(strategy: str, ranks: int, *, recomputed: bool = False) -> float:
        return memory.per_rank(strategy, ranks=ranks, samples=2, recomputed=recomputed)  # type: ignore[arg-type]

    assert of("ddp", 16) == of("ddp", 1) == kept + 2 * each
    assert of("fsdp", 16) == kept / 16 + 2 * 64 + 2 * each
    assert of("hsdp", 16) == kept / 8 + 2 * 64 + 2 * each
    assert of("ddp", 1, recomputed=True) == kept + 2 * (16 + 32)
    # Without blocks nothing can be recomputed.
    assert replace(memory, blocks=0).of_sample(recomputed=True) == each
    assert memory.per_rank("hsdp", ranks=2, samples=0, recomputed=False) == kept / 2 + 2 * 64


@pytest.mark.parametrize("name", list(STATE_BYTES))
def test_bytes_of_states_are_those_of_a_real_optimizer(name: str) -> None:
    layer = nn.Linear(1024, 1024, bias=False)
    optimizer = build_optimizer(name, layer, lr=1e-3)  # type: ignore[arg-type]
    layer.weight.grad = torch.ones_like(layer.weight)
    optimizer.step()
    found = state_bytes(optimizer) / layer.weight.numel()
    assert found == pytest.approx(STATE_BYTES[name], rel=0.03)  # type: ignore[index]


def test_a_dry_run_tells_all_and_writes_nothing(sana: TinySana, tmp_path: Path) -> None:
    command = ["train", "diffusion", "--data", sana.data, "--from", sana.model, "--dry-run"]
    settings = ["--set", "device=cpu", "--set", "batch_size=4", "--set", "total_images=24"]
    before = sorted(sana.data.rglob("*"))
    told = sanakit(*command, "--out", tmp_path / "run", *settings)[0]
    for word in ("16,676 learn", "FLOPs", "memory", "64 x 96 px: 5", "6 steps of 4", "images/s on"):
        assert word in told
    assert "epoch       4 steps" in told
    assert not (tmp_path / "run").exists()
    assert sorted(sana.data.rglob("*")) == before
    assert "not measured" in sanakit(*command, *settings, "--no-measure")[0]


def test_no_measure_without_a_dry_run_is_refused(sana: TinySana) -> None:
    error = sanakit("train", "diffusion", "--data", sana.data, "--no-measure", code=2)[1]
    assert "--dry-run" in error


def test_a_run_logs_its_share_of_the_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mfu, "peak_of", lambda device, dtype: 1e6)
    config = replace(CONFIG, log_every=1, total_images=8)
    train(Line(), config, tmp_path, resume=False, report=lambda line: None)
    line = next(line for line in read_log(tmp_path) if "lr" in line)
    # Rates are rounded in the log.
    assert line["mfu"] == pytest.approx(line["per_second"] * 96 / 1e6, rel=0.05)


def test_nothing_is_said_of_a_device_or_a_recipe_that_is_not_known() -> None:
    assert model_share(TinyRecipe(), 1.0, CPU, "float32") is None
    assert model_share(Line(), 1.0, torch.device("meta"), "float32") is None


def test_a_processor_s_peak_is_measured_once() -> None:
    assert peak_of(CPU, "float32") == peak_of(CPU, "float32") > 1e8


@pytest.mark.parametrize(
    ("name", "dtype", "wanted"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989e12),
        ("NVIDIA GeForce RTX 4090", "float16", 165e12),
        ("NVIDIA A100-SXM4-80GB", "float32", 0.0),
        ("Another", "bfloat16", 0.0),
    ],
)
def test_a_gpu_is_known_by_its_name(
    name: str, dtype: str, wanted: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_of(torch.device("cuda"), dtype) == wanted  # type: ignore[arg-type]
