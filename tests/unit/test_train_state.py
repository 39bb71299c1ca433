"""Checkpoints: whole or absent, the last two, and an optimizer that goes on as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn, optim
from torch.testing import assert_close

from sanakit.errors import WeightsError
from sanakit.train import state
from sanakit.train.state import (
    checkpoints,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)


def network() -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 2))
    weight = module[0].weight
    weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return module


def adamw(module: nn.Module) -> optim.Optimizer:
    return optim.AdamW(module.parameters(), lr=0.01, fused=True)


def step(module: nn.Module, optimizer: optim.Optimizer, seed: int) -> None:
    batch = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(seed))
    module(batch).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def save(run: Path, images: int, module: nn.Module | None = None) -> Path:
    module = module or network()
    return save_checkpoint(
        run,
        images_seen=images,
        module=module,
        optimizer=adamw(module),
        average={"w": torch.full((2,), float(images))},
        notes={"seconds": 1.5},
    )


def test_an_optimizer_goes_on_after_the_disk_as_if_it_had_stayed(tmp_path: Path) -> None:
    module, copy = network(), network()
    optimizer = adamw(module)
    for seed in range(3):
        step(module, optimizer, seed)
    save_checkpoint(
        tmp_path, images_seen=3, module=module, optimizer=optimizer, average=None, notes={}
    )
    _, tensors = load_checkpoint(checkpoints(tmp_path)[-1])
    copy.load_state_dict(tensors["model"])
    again = adamw(copy)
    restore_optimizer(again, tensors["optimizer"])
    assert_close(optimizer_tensors(again), optimizer_tensors(optimizer), atol=0, rtol=0)
    for seed in range(3, 6):
        step(module, optimizer, seed)
        step(copy, again, seed)
    assert_close(copy.state_dict(), module.state_dict(), atol=0, rtol=0)


def test_restored_moments_lie_in_memory_as_their_weights_do() -> None:
    module = network()
    optimizer = adamw(module)
    step(module, optimizer, 0)
    flat = {k: v.contiguous().clone() for k, v in optimizer_tensors(optimizer).items()}
    restore_optimizer(optimizer, flat)
    weight = module[0].weight
    assert optimizer.state[weight]["exp_avg"].stride() == weight.stride()
    assert optimizer.state[weight]["exp_avg_sq"].stride() == weight.stride()


def test_restoring_keeps_the_settings_of_the_running_config() -> None:
    module = network()
    optimizer = adamw(module)
    step(module, optimizer, 0)
    later = optim.AdamW(module.parameters(), lr=0.5, betas=(0.1, 0.2), fused=True)
    restore_optimizer(later, optimizer_tensors(optimizer))
    assert later.param_groups[0]["lr"] == 0.5
    assert later.param_groups[0]["betas"] == (0.1, 0.2)


def test_a_checkpoint_gives_back_what_went_in(tmp_path: Path) -> None:
    module = network()
    folder = save(tmp_path, 12, module)
    assert folder == tmp_path / "checkpoint-0000000012"
    notes, tensors = load_checkpoint(folder)
    assert notes["images_seen"] == 12
    assert notes["seconds"] == 1.5
    assert_close(tensors["model"], dict(module.state_dict()), atol=0, rtol=0)
    assert_close(tensors["average"], {"w": torch.full((2,), 12.0)})


def test_the_last_two_are_kept_and_sorted_by_images(tmp_path: Path) -> None:
    for images in (5, 90, 1000, 200_000):
        save(tmp_path, images)
    assert [int(path.name.split("-")[1]) for path in checkpoints(tmp_path)] == [1000, 200_000]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-0000001000",
        "checkpoint-0000200000",
    ]


def test_saving_twice_at_one_count_keeps_the_later(tmp_path: Path) -> None:
    save(tmp_path, 5)
    module = network()
    nn.init.ones_(module[2].weight)
    folder = save(tmp_path, 5, module)
    assert checkpoints(tmp_path) == [folder]
    assert torch.equal(load_checkpoint(folder)[1]["model"]["2.weight"], torch.ones(2, 12))


@pytest.mark.parametrize("killed_at", ["model", "optimizer", "average", "state.json", "rename"])
def test_a_save_that_is_killed_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: str
) -> None:
    before = save(tmp_path, 5)
    content = {path.name: path.read_bytes() for path in before.iterdir()}

    class Killed(BaseException):
        """As a signal is: no handler of errors sees it."""

    honest_save, honest_sync = state.save_file, state._sync

    def save_file(tensors: dict[str, Tensor], path: Path) -> None:
        honest_save(tensors, path)
        if path.stem == killed_at:
            raise Killed

    def sync(path: Path) -> None:
        if path.name == killed_at:
            raise Killed
        honest_sync(path)

    def rename(self: Path, target: Path) -> Path:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(state, "save_file", save_file)
        patched.setattr(state, "_sync", sync)
        if killed_at == "rename":
            patched.setattr(Path, "rename", rename)
        with pytest.raises(Killed):
            save(tmp_path, 9)
    assert checkpoints(tmp_path) == [before]
    assert {path.name: path.read_bytes() for path in before.iterdir()} == content
    assert list(tmp_path.glob(".*.tmp"))  # or nothing was interrupted
    # The next save goes through and sweeps up.
    save(tmp_path, 14)
    assert [path.name for path in checkpoints(tmp_path)] == [before.name, "checkpoint-0000000014"]
    assert not list(tmp_path.glob(".*"))


def test_a_folder_without_its_notes_is_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 5)
    (save(tmp_path, 9) / "state.json").unlink()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-0000000005"]
    assert checkpoints(tmp_path / "nowhere") == []


def test_the_notes_are_written_after_all_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    monkeypatch.setattr(state, "_sync", lambda path: order.append(path.name))
    folder = save(tmp_path, 5)
    assert order[-1] == "state.json"
    listed = json.loads((folder / "state.json").read_text())["files"]
    assert sorted(f"{name}.safetensors" for name in listed) == sorted(order[:-1])


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_file_is_named_with_the_way_out(tmp_path: Path, damage: str) -> None:
    folder = save(tmp_path, 5)
    path = folder / "optimizer.safetensors"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:3])
    else:
        path.unlink()
    with pytest.raises(WeightsError, match=r"optimizer\.safetensors.*\n.*remove this checkpoint"):
        load_checkpoint(folder)
