"""Checkpoints: whole or absent, found by their content, and never pruned to nothing."""

from __future__ import annotations

import errno
import hashlib
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sanakit.errors import WeightsError
from sanakit.train import checkpoint
from sanakit.train.checkpoint import (
    KEEP,
    MANIFEST,
    CheckpointWriter,
    checkpoints,
    contents,
    load_into,
    newest_valid,
    read_manifest,
    read_tensors,
    what_is_wrong,
)
from sanakit.train.distributed.ranks import Ranks

ALONE = Ranks()


def tensors(value: float = 1.0) -> dict[str, Tensor]:
    weight = torch.arange(24.0).reshape(2, 3, 2, 2) * value
    return {
        "model.weight": weight.contiguous(memory_format=torch.channels_last),
        "model.half": torch.full((3,), value, dtype=torch.bfloat16),
        "optimizer.weight.step": torch.tensor(value),
        "optimizer.weight.codes": torch.arange(5, dtype=torch.uint8),
        "model.version": torch.tensor(7),
    }


COUNTED = {
    "seconds": 1.5,
    "loss_scale": {"scale": 1.0, "finite_in_a_row": 0},
    "skipped": {"in_a_row": 0, "in_total": 0},
}


def save(run: Path, images: int, value: float = 1.0) -> Path:
    run.mkdir(exist_ok=True)
    writing = CheckpointWriter(run, ALONE)
    writing.start(
        tensors(value), {"images_seen": images, "extra": [1], **COUNTED}, background=False
    )
    folder, _ = writing.finish()
    assert folder is not None
    return folder


def names(run: Path) -> list[str]:
    return [path.name for path in checkpoints(run)]


def quiet(line: str) -> None:
    """Take the place of print."""


def test_what_was_written_comes_back_bit_by_bit_in_its_layout(tmp_path: Path) -> None:
    folder = save(tmp_path, 12, 1.7)
    assert folder.name == "checkpoint-0000000012"
    empty = {name: torch.zeros_like(tensor) for name, tensor in tensors().items()}
    load_into(folder, empty, ALONE)
    assert_close(empty, tensors(1.7), atol=0, rtol=0)
    assert empty["model.weight"].is_contiguous(memory_format=torch.channels_last)
    assert read_tensors(folder, "model").keys() == {"weight", "half", "version"}
    assert_close(read_tensors(folder, "model")["half"], tensors(1.7)["model.half"])
    assert read_tensors(folder, "average") == {}
    assert contents(folder)["optimizer.weight.codes"] == ((5,), torch.uint8)
    assert read_manifest(folder)["extra"] == [1]


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    for images in (4, 8, 12, 16):
        save(tmp_path, images)
    assert KEEP == 2
    assert names(tmp_path) == ["checkpoint-0000000012", "checkpoint-0000000016"]


def harm(folder: Path, kind: str) -> None:
    shard = next(folder.glob("*.safetensors"))
    data = shard.read_bytes()
    if kind == "torn":
        shard.write_bytes(data[: len(data) // 2])
    elif kind == "flipped":
        shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif kind == "gone":
        shard.unlink()
    elif kind == "manifest torn":
        text = (folder / MANIFEST).read_text()
        (folder / MANIFEST).write_text(text[: len(text) // 2])
    elif kind == "manifest deep":
        (folder / MANIFEST).write_text("[" * 100_000)
    else:
        odd = {
            "format": {"format": 1},
            "endless": {"images_seen": 1e400},
            "seconds": {"seconds": "x"},
        }
        odd |= {"no scale": {"loss_scale": {}}, "no skips": {"skipped": None}}
        odd |= {"another": {"images_seen": 16}, "scale": {"loss_scale": {"scale": "nan"}}}
        manifest = json.loads((folder / MANIFEST).read_text())
        if kind in ("loss_scale", "skipped"):
            del manifest[kind]
        (folder / MANIFEST).write_text(json.dumps({**manifest, **odd.get(kind, {})}))


KINDS = ["torn", "flipped", "gone", "manifest torn", "manifest deep"]
KINDS += ["format", "endless", "seconds", "another", "scale"]
KINDS += ["no scale", "no skips", "loss_scale", "skipped"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_newest_that_is_whole_is_chosen_and_the_fault_is_told(
    tmp_path: Path, kind: str
) -> None:
    save(tmp_path, 4)
    harm(save(tmp_path, 8), kind)
    told: list[str] = []
    assert newest_valid(tmp_path, ALONE, told.append) == tmp_path / "checkpoint-0000000004"
    assert len(told) == 1
    assert told[0].startswith("checkpoint-0000000008 is damaged (")
    harm(tmp_path / "checkpoint-0000000004", kind)
    with pytest.raises(WeightsError, match=r"none of 2 checkpoints is whole\n"):
        newest_valid(tmp_path, ALONE, quiet)


@pytest.mark.parametrize("name", ["../../x", "/etc/hostname", "model/../../x"])
def test_files_outside_of_a_checkpoint_are_none_of_it(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path / "run", 4)
    (tmp_path / "x").write_bytes(b"")
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][name] = [0, hashlib.sha256(b"").hexdigest()]
    path.write_text(json.dumps(manifest))
    assert "leads out of the folder" in str(what_is_wrong(folder))


def test_a_run_without_checkpoints_has_no_newest(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-0000000004").mkdir()  # no manifest: never finished
    (tmp_path / "checkpoint-notes").mkdir()
    assert newest_valid(tmp_path, ALONE, quiet) is None


def test_ranks_divide_the_files_to_look_at(tmp_path: Path) -> None:
    folder = save(tmp_path, 4)
    (folder / "shard-00002.safetensors").write_bytes(b"x")
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"]["shard-00002.safetensors"] = [1, "0" * 64]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert what_is_wrong(folder, share=slice(0, None, 2)) is None
    assert "shard-00002" in str(what_is_wrong(folder, share=slice(1, None, 2)))


def test_damaged_newer_ones_do_not_push_out_the_last_that_is_whole(tmp_path: Path) -> None:
    save(tmp_path, 4)
    for images in (20, 24):
        harm(save(tmp_path / "other", images), "torn")
        (tmp_path / "other" / f"checkpoint-{images:010d}").rename(
            tmp_path / f"checkpoint-{images:010d}"
        )
    save(tmp_path, 8)
    assert newest_valid(tmp_path, ALONE, quiet) == tmp_path / "checkpoint-0000000008"
    save(tmp_path, 12)
    assert (tmp_path / "checkpoint-0000000008").is_dir()


@pytest.mark.parametrize("where", ["sync", "sha256_of", "save"])
def test_a_full_disk_leaves_the_checkpoints_before_and_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    save(tmp_path, 4)

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, where, full)
        writer = CheckpointWriter(tmp_path, ALONE)
        writer.start(tensors(), {"images_seen": 8, **COUNTED}, background=False)
        final, fault = writer.finish()
    assert final is None
    assert "No space left" in fault
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-0000000004"]
    assert what_is_wrong(tmp_path / "checkpoint-0000000004") is None
    # The same writer goes on once there is room.
    writer.start(tensors(), {"images_seen": 8, **COUNTED}, background=False)
    assert writer.finish() == (tmp_path / "checkpoint-0000000008", "")


def test_an_error_that_is_not_the_disks_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*arguments: object, **options: object) -> None:
        raise RuntimeError("a shape of nothing")

    monkeypatch.setattr(checkpoint, "save", wrong)
    writer = CheckpointWriter(tmp_path, ALONE)
    with pytest.raises(RuntimeError, match="a shape of nothing"):
        writer.start(tensors(), {"images_seen": 8, **COUNTED}, background=False)


def test_what_is_written_in_the_background_is_what_it_was_at_the_start(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, ALONE)
    changing = tensors(1.0)
    writer.start(changing, {"images_seen": 4, **COUNTED}, background=True)
    for tensor in changing.values():
        tensor.zero_()
    final, fault = writer.finish()
    assert (final, fault) == (tmp_path / "checkpoint-0000000004", "")
    assert_close(read_tensors(final, "model")["half"], tensors(1.0)["model.half"])


def test_what_does_not_fit_says_which_and_how(tmp_path: Path) -> None:
    folder = save(tmp_path, 4)
    with pytest.raises(WeightsError, match=r"1 tensors are missing, the first is model.bias\n"):
        load_into(folder, {"model.bias": torch.zeros(1)}, ALONE)
    with pytest.raises(WeightsError, match=r"model.half is \(3,\) and the model wants \(4,\)\n"):
        load_into(folder, {"model.half": torch.zeros(4)}, ALONE)
    harm(folder, "torn")
    with pytest.raises(WeightsError, match=r"cannot be read \(.*\n.*the one before"):
        read_tensors(folder, "model")
