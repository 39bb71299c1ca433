"""The simulator of docs/scaling.md holds its limits, and the page says what it computes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from benchmarks.scaling import (
    GPUS,
    MODELS,
    PAGE,
    Assumed,
    Run,
    forward_flops,
    memory,
    parameters,
    renewed,
    sent,
    step_seconds,
    traffic,
    utilisation,
)
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sanakit.models.config import TRANSFORMERS
from sanakit.models.transformer import LinearDiT
from sanakit.pipeline import sequence_parallel

RUN = Run(model="1.6B", side=512, gpus=64, strategy="fsdp")
WAYS = ("ddp", "fsdp", "hsdp")


@pytest.mark.parametrize("preset", ["tiny", "glyph", *MODELS.values()])
def test_parameters_are_those_of_the_model(preset: str) -> None:
    config = TRANSFORMERS[preset]
    with torch.device("meta"):
        model = LinearDiT(config)
    assert parameters(config) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("preset", ["tiny", "glyph", "sana-0.6b"])
def test_operations_are_those_that_torch_counts(preset: str) -> None:
    config = replace(TRANSFORMERS[preset], num_layers=2, qk_norm="rms_norm_across_heads")
    model = LinearDiT(config)
    latent = torch.zeros(1, config.in_channels, 4, 6)
    text = torch.zeros(1, 20, config.caption_channels)
    # It does not know the CPU's fused attention.
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), counter:
        model.velocity(latent, torch.zeros(1), text, None)
    assert counter.get_total_flops() == forward_flops(config, 24 // config.patch_size**2, text=20)


@pytest.mark.parametrize("strategy", WAYS)
def test_one_gpu_sends_nothing(strategy: str) -> None:
    run = replace(RUN, gpus=1, strategy=strategy)
    assert traffic(run) == (0, 0)
    computing, sending = step_seconds(run, Assumed())
    assert computing > sending == 0


@pytest.mark.parametrize("gpus", GPUS)
def test_what_is_sharded_is_one_share_of_what_ddp_holds(gpus: int) -> None:
    run = replace(RUN, gpus=gpus, batch=32 * gpus)
    whole = memory(replace(run, strategy="ddp"))
    for strategy, shards in (("fsdp", gpus), ("hsdp", 8)):
        shared = memory(replace(run, strategy=strategy))
        for name in ("weights", "gradients", "optimizer", "average"):
            assert shared[name] == pytest.approx(whole[name] / shards)
        assert shared["activations"] == whole["activations"]


def test_hsdp_on_one_machine_is_fsdp() -> None:
    run = replace(RUN, gpus=8)
    assert traffic(run) == traffic(replace(run, strategy="hsdp"))
    assert memory(run) == memory(replace(run, strategy="hsdp"))


def test_gradients_between_parts_lie_whole_and_are_sent_once() -> None:
    once, thrice = replace(RUN, batch=64 * 32), replace(RUN, batch=3 * 64 * 32)
    assert (once.parts, thrice.parts) == (1, 3)
    count = parameters(RUN.config)
    assert memory(thrice)["gradients"] - memory(once)["gradients"] == 4 * count
    assert traffic(thrice)[0] - traffic(once)[0] == pytest.approx(2 * 4 * count * 63 / 64)
    copies = replace(once, strategy="ddp"), replace(thrice, strategy="ddp")
    assert traffic(copies[0]) == traffic(copies[1])


def test_without_a_network_to_wait_for_the_mfu_is_the_efficiency() -> None:
    fast = Assumed(inside=1e20, card=1e20)
    assert utilisation(replace(RUN, recompute=False), fast) == pytest.approx(fast.efficiency)
    assert utilisation(RUN, fast) == pytest.approx(0.75 * fast.efficiency)


def test_the_page_holds_the_tables_that_the_script_prints() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.count("<!-- end -->") == 5
    assert renewed(page) == page


class Sending:
    """Stands in for `torch.distributed` in process 1 of three, and counts the bytes it sends."""

    isend, irecv = "isend", "irecv"

    def __init__(self) -> None:
        self.sums = self.halo = self.begin = self.end = 0

    def is_initialized(self) -> bool:
        return True

    def get_rank(self) -> int:
        return 1

    def get_world_size(self) -> int:
        return 3

    def all_reduce(self, part: torch.Tensor) -> None:
        assert part.dtype == torch.float32
        self.sums += part.nbytes

    def broadcast(self, x: torch.Tensor, src: int) -> None:
        self.begin += x.nbytes

    def all_gather(self, parts: list[torch.Tensor], part: torch.Tensor) -> None:
        self.end += part.nbytes

    def P2POp(self, way: str, edge: torch.Tensor, peer: int) -> int:
        return edge.nbytes if way == self.isend else 0

    def batch_isend_irecv(self, operations: list[int]) -> list[object]:
        self.halo += sum(operations)
        return []


def test_what_is_sent_on_paper_is_what_a_process_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(TRANSFORMERS["tiny"], num_layers=3)
    network, counted = LinearDiT(config).bfloat16(), Sending()
    monkeypatch.setattr(sequence_parallel, "dist", counted)
    # As with units for 16 bits: a processor without them sends what it computes in fp32.
    monkeypatch.setattr("sanakit.nn.wide_products.is_emulated", lambda weight: False)
    side = 6 * 32
    x = torch.randn(2, config.in_channels, *[6 * config.patch_size] * 2, dtype=torch.bfloat16)
    text = torch.randn(2, 5, config.caption_channels, dtype=torch.bfloat16)
    with torch.no_grad(), sequence_parallel.sequence_parallel(network):
        network.velocity(x, torch.tensor([500.0, 500.0]), text, None)
    on_paper = sent(config, side, 3)
    assert counted.sums * 2 * 2 / 3 == pytest.approx(config.num_layers * on_paper.sums)
    assert counted.halo == config.num_layers * on_paper.halo
    assert counted.begin + 2 * counted.end == pytest.approx(on_paper.step)
