"""What a run must remember to go on as if it had never stopped; written whole or not at all.

A checkpoint is a folder of safetensors shards, written by `torch.distributed.checkpoint`, and a
manifest with the size and hash of each, written last; the folder then gets its name. Any number of
ranks reads what any other number wrote. Random state is not in it: every draw of a run is a
function of (run seed, number of the sample), so the count of images is enough.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from sanakit.errors import ConfigError, MissingModelError, WeightsError
from sanakit.files import discard_folder, sha256_of, sync
from sanakit.train.distributed.ranks import Ranks
from sanakit.untrusted import number, parse_json, read_file, shown, whole

KEEP = 2
FORMAT = 2
MANIFEST = "manifest.json"
_NAME = re.compile(r"checkpoint-(\d{10})")
_COUNTED = {
    "loss_scale": ("scale", "finite_in_a_row"),
    "skipped": ("in_a_row", "in_total"),
}
"""Numbers that a run cannot go on without, as `train/distributed/loss_scale.py` writes them."""
_TROUBLE = (OSError, CheckpointException, SafetensorError, RuntimeError)


def checkpoints(run: Path) -> list[Path]:
    """All finished checkpoints of a run, oldest first; whether they are whole is not asked."""
    found = [path for path in run.glob("checkpoint-*") if _NAME.fullmatch(path.name)]
    return sorted(path for path in found if (path / MANIFEST).is_file())


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of itself.

    Raises:
        WeightsError: there is no manifest, it is damaged, or of another format.
    """
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = parse_json(read_file(path))
        if manifest["format"] != FORMAT or not isinstance(manifest["files"], dict):
            raise KeyError("format")
        for name in manifest["files"]:
            if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
                raise ValueError(f"{shown(name)} leads out of the folder")
        if folder.name != f"checkpoint-{whole(manifest['images_seen'], name='images_seen'):010d}":
            raise ValueError(f"images_seen={manifest['images_seen']}")
        number(manifest["seconds"], name="seconds", low=0)
        for name, keys in _COUNTED.items():
            for key in keys:
                number(manifest[name][key], name=f"{name}.{key}")
    except (ConfigError, OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{path}: no manifest of a checkpoint ({error})",
            hint="remove this checkpoint folder to resume from the one before it",
        ) from error
    return manifest


def what_is_wrong(folder: Path, *, share: slice = slice(None)) -> str | None:
    """The first fault of a checkpoint, in words; None if every file is as it was written.

    ``share`` are the files to look at, so that ranks can divide the work.
    """
    try:
        manifest = read_manifest(folder)
        for name, (size, digest) in sorted(manifest["files"].items())[share]:
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} holds {path.stat().st_size} bytes and not {size}"
            if sha256_of(path) != digest:
                return f"{name} is not what was written"
    except (WeightsError, OSError, ValueError, TypeError, AttributeError) as error:
        return str(error).splitlines()[0]
    return None


def newest_valid(run: Path, ranks: Ranks, report: Callable[[str], object]) -> Path | None:
    """The newest checkpoint that is whole; each one that is not gets a line in the report.

    Raises:
        WeightsError: there are checkpoints, and none is whole.
    """
    found = checkpoints(run)
    for folder in reversed(found):
        fault = what_is_wrong(folder, share=slice(ranks.rank, None, ranks.count))
        if not ranks.total([float(fault is not None)])[0]:
            return folder
        if fault is not None:
            report(f"{folder.name} is damaged ({fault}): trying the one before")
    if found:
        raise WeightsError(
            f"{run}: none of {len(found)} checkpoints is whole",
            hint="start anew in another folder, or restore the files from a copy",
        )
    return None


def clear_unfinished(run: Path) -> None:
    """Remove what killed processes left of checkpoints that they wrote or removed."""
    for folder in run.glob(".checkpoint-*.tmp"):
        shutil.rmtree(folder, ignore_errors=True)


class CheckpointWriter:
    """Writes checkpoints ``run/checkpoint-<images>``, one at a time, in the background if asked.

    Older ones go only after the new one is on disk: if it refuses, those before stay.
    """

    def __init__(self, run: Path, ranks: Ranks) -> None:
        self.run, self.ranks = run, ranks
        self.notes: dict[str, Any] = {}
        self.pending: Future[Any] | None = None
        self.fault = ""
        self._threads = ThreadPoolExecutor(1, "checkpoint")

    @property
    def final(self) -> Path:
        """The folder that is being written, once it is whole."""
        return self.run / f"checkpoint-{self.notes['images_seen']:010d}"

    @property
    def temporary(self) -> Path:
        """The folder that is being written, until then."""
        return self.run / f".{self.final.name}.tmp"

    def start(
        self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any], *, background: bool
    ) -> None:
        """Begin to write; in the background, from copies that are made now."""
        assert self.pending is None
        self.notes, self.fault = dict(notes), ""
        try:
            if self.ranks.first:
                clear_unfinished(self.run)
                self.temporary.mkdir(parents=True)
        except OSError as error:
            self.fault = str(error)
        if self.ranks.total([float(bool(self.fault))])[0]:
            self.pending = _done()
            return
        # Weights may lie channels last, which files do not know.
        plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        if not background:
            self.pending = _done()
            self._write(plain)
        elif self.ranks.count == 1:
            copies = {name: tensor.to("cpu", copy=True) for name, tensor in plain.items()}
            self.pending = self._threads.submit(self._write, copies)
        else:
            writer = HuggingFaceStorageWriter(str(self.temporary), save_distributed=True)
            # The library copies what is on a GPU before it returns; training changes the rest.
            copies = {n: t.clone() if t.device.type == "cpu" else t for n, t in plain.items()}
            # A process group of its own: its messages must not meet those of the gradients.
            saving = async_save(copies, storage_writer=writer, process_group=self.ranks.side)
            assert isinstance(saving, Future)
            self.pending = saving

    def done(self) -> bool:
        """Whether this rank has written its part."""
        return self.pending is not None and self.pending.done()

    def finish(self) -> tuple[Path | None, str]:
        """Wait until all ranks have written, and give the folder its name; or None and the fault.

        All ranks call it together.
        """
        assert self.pending is not None
        try:
            self.pending.result()
        except _TROUBLE as error:
            self.fault = self.fault or _disk_fault(error)
        self.pending = None
        if not self.ranks.total([float(bool(self.fault))])[0]:
            self._note_hashes()
        if not self.ranks.total([float(bool(self.fault))])[0] and self.ranks.first:
            self._name()
        failed = self.ranks.total([float(bool(self.fault))])[0] > 0
        if failed and self.ranks.first:
            shutil.rmtree(self.temporary, ignore_errors=True)
        return (None if failed else self.final), self.fault

    def _write(self, tensors: Mapping[str, Tensor]) -> None:
        try:
            writer = HuggingFaceStorageWriter(str(self.temporary), save_distributed=True)
            with _alone_or_not():
                save(dict(tensors), storage_writer=writer, no_dist=self.ranks.count == 1)
        except _TROUBLE as error:
            self.fault = _disk_fault(error)

    def _note_hashes(self) -> None:
        """Sync and hash this rank's share of the files, and leave the result for the first rank."""
        try:
            shards = sorted(self.temporary.glob("*.safetensors"))
            facts = {}
            for path in shards[self.ranks.rank :: self.ranks.count]:
                sync(path)
                facts[path.name] = (path.stat().st_size, sha256_of(path))
            part = self.temporary / f"hashes-{self.ranks.rank}.json"
            part.write_text(json.dumps(facts), encoding="utf-8")
        except OSError as error:
            self.fault = str(error)

    def _name(self) -> None:
        try:
            files: dict[str, Any] = {}
            for part in sorted(self.temporary.glob("hashes-*.json")):
                files |= parse_json(read_file(part))
                part.unlink()
            manifest = {"format": FORMAT, **self.notes, "files": files}
            path = self.temporary / MANIFEST
            path.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
            sync(path)
            sync(self.temporary)
            if self.final.exists():
                # Damaged: the loop goes on from a whole one and never writes it a second time.
                discard_folder(self.final)
            self.temporary.rename(self.final)
            sync(self.run)
            # Newer ones are damaged, or this would not be written: they do not count.
            older = [path for path in checkpoints(self.run) if path.name < self.final.name]
            for old in older[: -(KEEP - 1)]:
                discard_folder(old)
        except OSError as error:
            self.fault = str(error)


def load_into(folder: Path, tensors: Mapping[str, Tensor], ranks: Ranks) -> None:
    """Fill tensors in place from a checkpoint, each rank its own shards.

    Raises:
        WeightsError: a name is missing or has another shape, or a file is damaged.
    """
    known = contents(folder)
    missing = sorted(tensors.keys() - known.keys())
    other = [
        name for name in tensors if name in known and known[name][0] != tuple(tensors[name].shape)
    ]
    if missing or other:
        first = (missing or other)[0]
        say = (
            f"{len(missing)} tensors are missing, the first is {first}"
            if missing
            else f"{first} is {known[first][0]} and the model wants {tuple(tensors[first].shape)}"
        )
        raise WeightsError(
            f"{folder}: {say}",
            hint="resume with the model and the settings that the run was started with",
        )
    with _reading(folder), _alone_or_not():
        load(
            {name: tensor.detach() for name, tensor in tensors.items()},
            storage_reader=HuggingFaceStorageReader(str(folder)),
            no_dist=ranks.count == 1,
        )


def contents(folder: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Whole shapes and dtypes of all tensors of a checkpoint by name, from all ranks that wrote.

    Raises:
        WeightsError: a file is missing or damaged.
    """
    with _reading(folder):
        metadata = HuggingFaceStorageReader(str(folder)).read_metadata()
    found = {}
    for name, entry in metadata.state_dict_metadata.items():
        assert isinstance(entry, TensorStorageMetadata)
        found[name] = tuple(entry.size), entry.properties.dtype
    return found


def read_tensors(folder: Path, prefix: str) -> dict[str, Tensor]:
    """Whole tensors of a checkpoint whose names begin with ``prefix.``, which is cut off.

    Raises:
        WeightsError: as :func:`load_into`.
    """
    tensors = {
        name: torch.empty(size, dtype=dtype)
        for name, (size, dtype) in contents(folder).items()
        if name.startswith(f"{prefix}.")
    }
    if tensors:
        load_into(folder, tensors, Ranks())
    return {name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items()}


def newest_weights(run: Path) -> dict[str, Tensor]:
    """The newest weights of a run, averaged ones where there are.

    Raises:
        MissingModelError: there is no checkpoint yet. WeightsError: none is whole.
    """
    folder = newest_valid(run, Ranks(), print)
    if folder is None:
        raise MissingModelError(
            f"{run} holds no checkpoint yet",
            hint="one is written every five minutes, and when the run ends or is stopped",
        )
    return read_tensors(folder, "average") or read_tensors(folder, "model")


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except WeightsError:
        raise
    except _TROUBLE as error:
        raise WeightsError(
            f"{folder}: cannot be read ({_words(error)})",
            hint="remove this checkpoint folder to resume from the one before it",
        ) from error


@contextmanager
def _alone_or_not() -> Iterator[None]:
    """Hear nothing of the library's doubt whether one process was meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable")
        yield


def _disk_fault(error: BaseException) -> str:
    """What the disk said; an error that is not the disk's is raised again."""
    failures = [error]
    if isinstance(error, CheckpointException):
        failures = [failure for failure, _ in error.failures.values()]
    if not failures or not all(isinstance(one, OSError | SafetensorError) for one in failures):
        raise error
    return _words(error)


def _words(error: BaseException) -> str:
    """The first line of what went wrong, of the rank that it went wrong on."""
    if isinstance(error, CheckpointException) and error.failures:
        inner = next(iter(error.failures.values()))[0]
        return f"{type(inner).__name__}: {inner}".splitlines()[0]
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _done() -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(None)
    return future
