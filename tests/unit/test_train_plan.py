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
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.flops import transformer_flops
from sanakit.train import peak
from sanakit.train.autoencoder import AutoencoderBatch, AutoencoderRecipe
from sanakit.train.flops import SeenShapes, counted, training_factor
from sanakit.train.log import read_log
from sanakit.train.loop import train
from sanakit.train.optimizers.build import build_optimizer, state_bytes
from sanakit.train.peak import model_share, peak_of
from sanakit.train.picture_sources import ShardSource
from sanakit.train.plan import STATE_BYTES, plan_of
from sanakit.train.settings import LoopConfig
from sanakit.train.shares import Share
from tiny import AUTOENCODER
from tiny_recipe import TinyRecipe, drawn
from tiny_sana import TinySana, tiny_sana

CPU = torch.device("cpu")
CONFIG = LoopConfig(
    batch_size=4, total_images=22, peak_lr=1e-2, compute_dtype="float32", device="cpu"
)


class Line(TinyRecipe):
    """A linear layer of 4 x 4: all that its forward pass keeps can be counted by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(4, 4, bias=False)

    def stream(self, share: Share) -> Iterator[Tensor]:
        for span in share.spans():
            yield torch.ones(len(span), 4)

    def loss(self, batch: Tensor) -> dict[str, Tensor]:
        return {"loss": self.module(batch).square().mean()}

    def blocks(self) -> Iterator[nn.Module]:
        yield self.module

    def flops(self) -> float:
        return 32.0


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
    recipe = AutoencoderRecipe(Autoencoder(AUTOENCODER), ShardSource(lambda share: ()))
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


def test_weights_that_autocast_copies_do_not_grow_with_the_batch() -> None:
    config = replace(CONFIG, compute_dtype="bfloat16", average_halflife=10)
    memory = plan_of(Line(), config, device=CPU, measure=False).memory
    assert memory.copies in (0, 32)
    assert memory.activations < 64
    assert memory.average == 64


def test_shards_divide_what_is_kept_and_not_what_is_computed() -> None:
    memory = plan_of(Line(), CONFIG, device=CPU, measure=False).memory
    kept, each = 64 + 64 + 128, 32

    def of(strategy: str, ranks: int, *, recomputed: bool = False) -> float:
        return memory.per_rank(strategy, ranks=ranks, samples=2, recomputed=recomputed)  # type: ignore[arg-type]

    assert of("ddp", 16) == of("ddp", 1) == kept + 2 * each
    assert of("fsdp", 16) == kept / 16 + 2 * 64 + 2 * each
    assert of("hsdp", 16) == kept / 8 + 2 * 64 + 2 * each
    assert of("ddp", 1, recomputed=True) == kept + 2 * (16 + 32)


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
    monkeypatch.setattr(peak, "peak_of", lambda device, dtype: 1e6)
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
