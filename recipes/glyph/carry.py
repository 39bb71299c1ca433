"""What travels between machines: everything that is still needed, as a few files of bounded size.

Of a training that is its weights at a byte each, and of the optimizer of one that goes on the
second moments by their means over rows and columns (Shazeer and Stern 2018): of 29 M parameters
30 MB, where a checkpoint has 464. A training that goes on from it is not the one that was broken
off: its weights were rounded (0.6 percent of their RMS), those that learn begin at their average,
and first moments begin at zero, so that the first ten steps are short ones.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from recipes.glyph.cost import COST
from recipes.glyph.presets import Whole
from recipes.glyph.stages import STAGES, TRAININGS, Work, required
from recipes.glyph.train.latent_bank import SCALE
from recipes.glyph.train.runs import LATENTS, TEXT
from sanakit.errors import DataError
from sanakit.files import sha256_of
from sanakit.train.checkpoint import (
    MANIFEST,
    checkpoints,
    read_manifest,
    read_tensors,
    what_is_wrong,
    write_checkpoint,
)
from sanakit.train.distributed.ranks import Ranks
from sanakit.train.recipes.autoencoder_run import VAE
from sanakit.train.runs.run_config import RUN
from sanakit.weights.int8_rows import pack_int8
from sanakit.weights.layout import CONFIG
from sanakit.weights.store import read_tensors as read_file
from sanakit.weights.store import write_tensors

CARRY, LIST = "carry", "carry.json"
FORMAT = 1
WEIGHTS, MOMENTS = "weights.safetensors", "moments.safetensors"
BESIDE = (RUN, "loop.json", "log.jsonl", f"{VAE}/{CONFIG}", f"{LATENTS}/{SCALE}")
"""Of a training, as it is."""
PLACE = "{out}"
"""Stands for the folder of the run, which is another one on another machine."""
_PART = re.compile(r"part-\d\d\.bin")
_MB = 1_000_000


def pack(work: Work) -> Path:
    """Write what a next piece needs to ``OUT/carry``; what was there goes.

    Raises:
        DataError: it is more than the preset lets travel, or the disk refuses.
    """
    folder, limits = work.out / CARRY, work.preset.whole
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=work.out, prefix=".packing-") as place:
        staging = Path(place) / "all"
        staging.mkdir()
        _gather(work, staging)
        archive = Path(place) / "all.tar"
        with tarfile.open(archive, "w") as tar:
            for path in sorted(staging.rglob("*")):
                if path.is_file():
                    tar.add(path, str(path.relative_to(staging)))
        size = archive.stat().st_size
        if size > limits.carry_mb * _MB:
            raise DataError(
                f"{size / _MB:.1f} MB would have to travel, and carry_mb is {limits.carry_mb:g}",
                hint="go on on this machine: the same command again",
            )
        folder.mkdir(parents=True)
        parts = _split(archive, folder, limits)
    value = {"format": FORMAT, "pieces": _pieces(work.out), "parts": parts}
    (folder / LIST).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    return folder


def unpack(work: Work, carry: Path) -> bool:
    """Take up what a piece before this one left; False if this folder is as far already.

    Raises:
        DataError: files are missing or not what was packed.
    """
    try:
        value = json.loads((carry / LIST).read_text(encoding="utf-8"))
        if value["format"] != FORMAT:
            raise KeyError(f"format {value['format']}")
        parts, pieces = [tuple(part) for part in value["parts"]], int(value["pieces"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{carry} holds no carry ({error})", hint="name OUT/carry") from error
    if _pieces(work.out) >= pieces:
        return False
    for name, size, digest in parts:
        path = carry / name
        if not _PART.fullmatch(name) or not path.is_file():
            raise DataError(f"{path} is missing", hint=f"copy all {len(parts)} parts")
        if path.stat().st_size != size or sha256_of(path) != digest:
            raise DataError(f"{path} is not what was packed", hint="copy it again")
    with tempfile.TemporaryDirectory(dir=work.out, prefix=".unpacking-") as place:
        archive, staging = Path(place) / "all.tar", Path(place) / "all"
        with archive.open("wb") as joined:
            for name, _, _ in parts:
                joined.write((carry / name).read_bytes())
        _extract(archive, staging)
        for name in TRAININGS:
            if (staging / "runs" / name).is_dir():
                _restore(staging / "runs" / name, work.run(name), work.out)
                shutil.rmtree(staging / "runs" / name)
        # Last: it says that all the rest is there.
        for path in sorted(staging.rglob("*"), key=lambda path: path.name == COST):
            if path.is_file():
                target = work.out / path.relative_to(staging)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
    return True


def _extract(archive: Path, folder: Path) -> None:
    """Plain files below the folder, and nothing else that a tar can hold."""
    with tarfile.open(archive) as tar:
        for member in tar:
            name = PurePosixPath(member.name)
            file = tar.extractfile(member) if member.isreg() else None
            if file is None or name.is_absolute() or ".." in name.parts:
                raise DataError(f"the carry holds {member.name!r}", hint="pack it again")
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with (folder / name).open("wb") as target:
                shutil.copyfileobj(file, target)


def _gather(work: Work, staging: Path) -> None:
    wanted = required(work)
    _copy(work.out / COST, staging / COST)
    for path in (work.model, work.sheet, work.out / "evaluation"):
        for file in _files(path):
            if "cache" not in file.parts:
                _copy(file, staging / file.relative_to(work.out))
    for name in TRAININGS:
        if name in wanted and checkpoints(work.run(name)):
            goes_on = not STAGES[name].is_done(work)
            _condense(work.run(name), staging / "runs" / name, work.out, goes_on=goes_on)
    text = work.data / TEXT
    if "tokenizer" in wanted and STAGES["tokenizer"].is_done(work):
        rows = not STAGES["lm"].is_done(work)
        for file in _files(text):
            if rows or file.parent != text:
                _copy(file, staging / file.relative_to(work.out))


def _condense(run: Path, target: Path, out: Path, *, goes_on: bool) -> None:
    """Keep of a run what its last checkpoint has learned.

    Raises:
        WeightsError: the checkpoint is damaged.
    """
    folder = checkpoints(run)[-1]
    if fault := what_is_wrong(folder):
        raise DataError(f"{folder} is damaged: {fault}", hint="remove it; the one before serves")
    target.mkdir(parents=True)
    averaged = read_tensors(folder, "average")
    packed, metadata = pack_int8(averaged or read_tensors(folder, "model"))
    write_tensors(target / WEIGHTS, packed, metadata)
    if goes_on:
        write_tensors(target / MOMENTS, dict(_condensed(read_tensors(folder, "optimizer"))), {})
    notes = read_manifest(folder)
    notes = {k: v for k, v in notes.items() if k not in ("format", "files")}
    notes["averaged"] = bool(averaged)
    (target / MANIFEST).write_text(json.dumps(notes), encoding="utf-8")
    for name in BESIDE:
        if (run / name).is_file():
            _copy(run / name, target / name)
    if (target / RUN).is_file():
        told = (target / RUN).read_text(encoding="utf-8")
        (target / RUN).write_text(told.replace(str(out.resolve()), PLACE), encoding="utf-8")


def _restore(source: Path, run: Path, out: Path) -> None:
    """Make a checkpoint of it, as if one had been written here."""
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    notes = json.loads((source / MANIFEST).read_text(encoding="utf-8"))
    weights = read_file(source / WEIGHTS)
    tensors = {f"model.{name}": value for name, value in weights.items()}
    if notes.pop("averaged"):
        tensors |= {f"average.{name}": value.clone() for name, value in weights.items()}
    if (source / MOMENTS).is_file():
        moments = _whole(read_file(source / MOMENTS), weights)
        tensors |= {f"optimizer.{name}": value for name, value in moments}
    for name in BESIDE:
        if (source / name).is_file():
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            told = (source / name).read_text(encoding="utf-8")
            if name == RUN:
                told = told.replace(PLACE, str(out.resolve()))
            (run / name).write_text(told, encoding="utf-8")
    if write_checkpoint(run, tensors, notes, Ranks()) is None:
        raise DataError(f"{run}: the checkpoint could not be written", hint="make room")


def _condensed(states: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """AdamW's second moments by their means; of other optimizers nothing: they begin anew."""
    for key, value in states.items():
        name, slot = key.rsplit(".", 1)
        if slot == "step":
            yield key, value
        if slot != "exp_avg_sq":
            continue
        if value.ndim < 2:
            yield f"{name}.whole", value
        else:
            yield f"{name}.rows", value.flatten(1).mean(dim=1)
            yield f"{name}.columns", value.flatten(1).mean(dim=0)


def _whole(
    moments: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """AdamW's states as it knows them: rows times columns over their mean; first moments zero."""
    for key, value in moments.items():
        name, slot = key.rsplit(".", 1)
        if slot == "step":
            yield key, value
        elif slot != "columns":
            second = value
            if slot == "rows":
                outer = torch.outer(value, moments[f"{name}.columns"])
                second = (outer / value.mean().clamp_min(1e-30)).reshape(weights[name].shape)
            yield f"{name}.exp_avg_sq", second
            yield f"{name}.exp_avg", torch.zeros_like(second)


def _split(archive: Path, folder: Path, limits: Whole) -> list[tuple[str, int, str]]:
    """Cut a file into parts; gives their names, sizes and SHA-256."""
    most = int(limits.file_mb * _MB)
    parts: list[tuple[str, int, str]] = []
    with archive.open("rb") as whole:
        while block := whole.read(most):
            name = f"part-{len(parts):02d}.bin"
            (folder / name).write_bytes(block)
            parts.append((name, len(block), hashlib.sha256(block).hexdigest()))
    if len(parts) > limits.files:
        shutil.rmtree(folder)
        raise DataError(
            f"{len(parts)} files would have to travel, and files is {limits.files}",
            hint="go on on this machine: the same command again",
        )
    return parts


def _pieces(out: Path) -> int:
    try:
        return int(json.loads((out / COST).read_text(encoding="utf-8"))["pieces"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file())


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
