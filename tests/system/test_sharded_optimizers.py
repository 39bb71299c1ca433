"""Two ranks with half the rows each: the steps of one, the average of one, states that go on."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.optim import Optimizer
from torch.testing import assert_close

from sanakit.errors import ConfigError
from sanakit.train.ema import EMA
from sanakit.train.optim.build import NAMES, build_optimizer, state_bytes
from sanakit.train.recipes.diffusion import LossBins

RANKS = 2
SAME = 2e-4
"""Adam makes a whole step of a tiny gradient: what rounding does to a few values shows."""
SETTINGS = {"lr": 0.01, "weight_decay": 0.1}


def network() -> nn.Sequential:
    """Rows that do not split evenly, a 1 x 1 and a depthwise convolution, few rows and one row."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(40, 421, 1),
        nn.Conv2d(421, 421, 3, padding=1, groups=421),
        nn.Flatten(),
        nn.Linear(421 * 4, 15),
        nn.Linear(15, 1),
    )


def step(module: nn.Module, optimizer: Optimizer, seed: int) -> None:
    """The same batch on all ranks, so that its gradient is that of one."""
    batch = torch.randn(3, 40, 2, 2, generator=torch.Generator().manual_seed(seed))
    module(batch).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()
        for name, tensor in tensors.items()
    }


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of a tensor, as a share of how far training moved it."""
    start = network().state_dict()
    gaps = [float((found[k] - expected[k]).norm() / (expected[k] - start[k]).norm()) for k in start]
    return max(gaps)


def trained(name: str, seeds: range) -> tuple[nn.Module, Optimizer, EMA]:
    """One rank, whole weights."""
    module = network()
    optimizer = build_optimizer(name, module, **SETTINGS)
    average = EMA(module.state_dict(), halflife=50)
    for seed in seeds:
        step(module, optimizer, seed)
        average.update(module.state_dict(), images_seen=1000, batch_size=20)
    return module, optimizer, average


def on_a_rank(rank: int, folder: Path, port: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS
    )
    flat = init_device_mesh("cpu", (RANKS,))
    replicated = init_device_mesh("cpu", (1, RANKS), mesh_dim_names=("replicate", "shard"))
    for name in NAMES:
        mesh = replicated if name == "came8bit" else flat
        module = network()
        for layer in module:
            if list(layer.parameters()):
                fully_shard(layer, mesh=mesh)
        fully_shard(module, mesh=mesh)
        optimizer = build_optimizer(name, module, **SETTINGS)
        average = EMA(module.state_dict(), halflife=50)
        for seed in range(4):
            step(module, optimizer, seed)
            average.update(module.state_dict(), images_seen=1000, batch_size=20)
        one, full_optimizer, full_average = trained(name, range(4))
        assert state_bytes(optimizer) < 0.6 * state_bytes(full_optimizer)
        assert difference(whole(module.state_dict()), one.state_dict()) < SAME
        assert difference(whole(average.tensors), full_average.tensors) < SAME

        # Weights that FSDP gathered for an evaluation are not those of the next step.
        batch = torch.randn(3, 40, 2, 2, generator=torch.Generator().manual_seed(9))
        with torch.no_grad():
            before = module(batch)
            with average.swapped_in(module):
                averaged = module(batch)
            after = module(batch)
            with full_average.swapped_in(one):
                assert_close(averaged, one(batch), atol=1e-4, rtol=1e-3)
        assert not torch.equal(averaged, before)
        assert torch.equal(after, before)

        weights, states = get_state_dict(module, optimizer)
        dcp.save({"weights": weights, "states": states}, checkpoint_id=folder / name)
        for seed in range(4, 6):
            step(module, optimizer, seed)
        ends = whole(module.state_dict())
        if rank == 0:
            torch.save(ends, folder / f"{name}.pt")

    bins = LossBins(2)
    bins.add(torch.tensor([1.0 + rank]), torch.tensor([0.6 * rank]))
    bins.add(torch.tensor([5.0]), torch.tensor([0.9]))
    bins.all_reduce()
    assert bins.means() == {"loss_sigma_0": 1.0, "loss_sigma_0.5": 4.0}

    columns = nn.Parameter(distribute_tensor(torch.ones(4, 4), flat, [Shard(1)]))
    columns.grad = columns.detach().clone()
    optimizer = build_optimizer("came", [("columns", columns)], lr=0.1)
    with pytest.raises(ConfigError, match="sharded by rows"):
        optimizer.step()
    dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_two_ranks_step_as_one_and_one_goes_on_where_two_stopped(tmp_path: Path) -> None:
    mp.spawn(on_a_rank, args=(tmp_path, free_port()), nprocs=RANKS)
    for name in NAMES:
        # Another model and optimizer take over weights and states, on one rank.
        module, optimizer, _ = trained(name, range(1))
        weights, states = get_state_dict(module, optimizer)
        dcp.load({"weights": weights, "states": states}, checkpoint_id=tmp_path / name)
        set_state_dict(module, optimizer, model_state_dict=weights, optim_state_dict=states)
        for seed in range(4, 6):
            step(module, optimizer, seed)
        ends = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        assert difference(module.state_dict(), ends) < SAME
