"""Optimizers by name: groups, refusals, resuming bit for bit, and that they learn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.testing import assert_close

from sanakit.errors import ConfigError, WeightsError
from sanakit.flow.grids import levels_at
from sanakit.flow.path import flow_matching_loss, interpolate
from sanakit.models.init import init_transformer
from sanakit.models.transformer import LinearDiT
from sanakit.train.optim import blocks
from sanakit.train.optim.adamw8bit import AdamW8bit
from sanakit.train.optim.build import (
    NAMES,
    build_optimizer,
    materialise,
    set_rate,
    state_bytes,
)
from sanakit.train.optim.came import CAME
from tiny import TRANSFORMER


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    """A matrix and a convolution that are quantized, and small things that are not."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(33, 64, 3, padding=1), nn.Flatten(), nn.Linear(64 * 4, 70), nn.Linear(70, 2)
    )
    weight = module[0].weight
    weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return module.to(dtype)


def step(module: nn.Module, optimizer: Optimizer, seed: int) -> None:
    batch = torch.randn(3, 33, 2, 2, generator=torch.Generator().manual_seed(seed))
    module(batch.to(module[0].weight.dtype)).float().square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adamw", AdamW), ("came", CAME), ("came8bit", CAME), ("adamw8bit", AdamW8bit)],
)
def test_each_name_gives_its_optimizer_with_its_settings(name: str, kind: type[Optimizer]) -> None:
    optimizer = build_optimizer(name, network(), lr=0.25, weight_decay=0.5)
    assert type(optimizer) is kind
    came = name.startswith("came")
    for group in optimizer.param_groups:
        assert group["lr"] == 0.25
        assert group["betas"] == ((0.9, 0.999, 0.9999) if came else (0.9, 0.999))
        assert group["eps"] == ((1e-30, 1e-16) if came else 1e-8)
        assert group.get("eight_bit", False) == (name == "came8bit")
        assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] == 0.5}
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0.0, 0.5}
    betas = (0.5, 0.6, 0.7)[: 3 if came else 2]
    other = build_optimizer(name, network(), lr=0.25, betas=betas)
    assert other.defaults["betas"] == betas
    set_rate(other, 8.0)
    assert {group["lr"] for group in other.param_groups} == {8.0}


def test_only_what_asks_for_a_gradient_is_trained() -> None:
    module = network()
    module[0].requires_grad_(False)
    optimizer = build_optimizer("adamw", list(module.named_parameters()), lr=0.1)
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in module.parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("cane", {}, r"'cane' is unknown\n.*did you mean 'came'"),
        ("came", {"betas": (0.9, 0.99)}, "came takes 3 numbers"),
        ("adamw8bit", {"betas": (0.9, 0.99, 0.9)}, "adamw8bit takes 2 numbers"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_optimizer(name, network(), lr=0.1, **settings)


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing to train"):
        build_optimizer("came", network().requires_grad_(False), lr=0.1)


def slots(optimizer: Optimizer) -> dict[str, Tensor]:
    """All tensors of the state, by number of parameter and name."""
    state = optimizer.state_dict()["state"]
    return {f"{n}.{name}": slot for n, found in state.items() for name, slot in found.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_a_run_goes_on_from_a_file_as_if_it_had_stayed(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    module, copy = network(dtype), network(dtype)
    optimizer = build_optimizer(name, module, lr=0.01, weight_decay=0.1)
    for seed in range(3):
        step(module, optimizer, seed)
    saved = {key: slot.contiguous() for key, slot in slots(optimizer).items()}
    save_file(saved, tmp_path / "optimizer.safetensors")
    copy.load_state_dict(module.state_dict())
    again = build_optimizer(name, copy, lr=0.01, weight_decay=0.1)
    materialise(again)
    assert_close(copy.state_dict(), module.state_dict(), atol=0, rtol=0)  # nothing moved
    restored = slots(again)
    for key, slot in load_file(tmp_path / "optimizer.safetensors").items():
        restored[key].copy_(slot)
    for key, slot in slots(optimizer).items():
        assert restored[key].dtype == slot.dtype
        assert torch.equal(restored[key], slot)
        assert name == "adamw" or slot.dtype != torch.bfloat16
    for seed in range(3, 6):
        step(module, optimizer, seed)
        step(copy, again, seed)
    assert_close(copy.state_dict(), module.state_dict(), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("saved", "loaded", "said"),
    [
        ("came", "came8bit", r"parameter 2, shape \(70, 256\), does not fit CAME: first is"),
        ("came8bit", "came", "first is missing"),
        ("adamw8bit", "came", "does not fit CAME"),
        ("adamw", "adamw8bit", "does not fit AdamW8bit: exp_avg is"),
    ],
)
def test_a_state_of_another_optimizer_is_refused(saved: str, loaded: str, said: str) -> None:
    module = network()
    optimizer = build_optimizer(saved, module, lr=0.01)
    step(module, optimizer, 0)
    other = build_optimizer(loaded, module, lr=0.01)
    step(module, other, 0)
    before = {key: slot.clone() for key, slot in slots(other).items()}
    mixed = {**other.state_dict(), "state": optimizer.state_dict()["state"]}
    with pytest.raises(WeightsError, match=said):
        other.load_state_dict(mixed)
    assert_close(slots(other), before, atol=0, rtol=0)


def test_bytes_of_state_are_those_promised() -> None:
    weight = nn.Parameter(torch.zeros(512, 2048))
    weight.grad = torch.ones_like(weight)
    expected = {
        "adamw": 8,
        "came": 4 + 8 / 2048 + 8 / 512,
        "came8bit": 1 + 8 / 2048 + 8 / 2048 + 8 / 512,
        "adamw8bit": 2 + 2 * 4 / 256,
    }
    for name, bytes_each in expected.items():
        optimizer = build_optimizer(name, [("weight", weight)], lr=0.01)
        optimizer.step()
        step_counter = 4 if name.startswith("adamw") else 0
        assert state_bytes(optimizer) == weight.numel() * bytes_each + step_counter


@pytest.mark.parametrize("name", NAMES)
def test_a_quadratic_is_minimised(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "SMALLEST", 0)
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(24, 40, generator=generator)
    curvature = 10 ** torch.linspace(-1, 1, 24)[:, None]
    weight = nn.Parameter(torch.zeros(24, 40))
    optimizer = build_optimizer(name, [("weight", weight)], lr=0.05)
    for count in range(200):
        set_rate(optimizer, 0.05 * (1 - count / 200))
        loss = (curvature * (weight - target).square()).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    start = (curvature * target.square()).mean()
    assert loss < 0.003 * start


def fitted(name: str, lr: float) -> list[float]:
    """Losses of a tiny transformer that learns one batch by heart."""
    model = LinearDiT(TRANSFORMER)
    init_transformer(model, generator=torch.Generator().manual_seed(0))
    optimizer = build_optimizer(name, model, lr=lr)
    generator = torch.Generator().manual_seed(1)
    x0, noise = (torch.randn(8, 4, 2, 2, generator=generator) for _ in range(2))
    text = torch.randn(8, 3, 8, generator=generator)
    mask = torch.ones(8, 3, dtype=torch.bool)
    level = levels_at(torch.randn(8, generator=generator).sigmoid(), 1.0)
    losses = []
    for _ in range(100):
        x = interpolate(x0, noise, level.sigma)
        predicted: Tensor = model.velocity(x, level.timestep, text, mask)
        loss = flow_matching_loss(predicted, x0, noise).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def test_a_tiny_transformer_learns_with_each_as_it_does_with_adamw(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blocks, "SMALLEST", 0)
    monkeypatch.setattr(blocks, "NARROWEST", 8)
    # CAME has no bias correction: its moment takes ten steps to grow.
    losses = {name: fitted(name, 0.01) for name in NAMES}
    assert losses["adamw"][-1] < 0.2 * losses["adamw"][0]
    for name in NAMES:
        # At 60 steps the order of sums, so the number of threads, moves CAME's loss threefold.
        assert losses[name][-1] < 0.08 * losses[name][0], name
    for coded, plain in (("came8bit", "came"), ("adamw8bit", "adamw")):
        assert losses[coded] != losses[plain]  # or nothing was quantized
