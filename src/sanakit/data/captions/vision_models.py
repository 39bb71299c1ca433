"""Models of `transformers` that look at pictures: found, told apart, and run alike everywhere.

What captioning and scoring share. Nothing here writes files.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from PIL import Image
from transformers import AutoProcessor
from transformers.utils import logging as transformers_logging

from sanakit.data.samples import Sample
from sanakit.data.sources.places import read_place
from sanakit.data.training_set import TrainingSet
from sanakit.errors import ConfigError, DataError, MissingModelError, OutOfMemory, WeightsError
from sanakit.files import expanded
from sanakit.images.decode import DecodeLimits, decode
from sanakit.pipeline.decoder import is_out_of_memory
from sanakit.pipeline.language_models import check_rules
from sanakit.pipeline.placement import device_named
from sanakit.untrusted import other_readers
from sanakit.weights.hub import fetch_files

T = TypeVar("T")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*(@\S+)?")
_FETCHED = ("*.json", "*.txt", "*.jinja", "*.model", "*.safetensors")
_SMALL = (".json", ".txt", ".jinja", ".model")
_END = 1 << 20


class Opened(Generic[T]):
    """What a stage opened in its process; a pickled stage leaves it behind."""

    def __init__(self) -> None:
        self._value: T | None = None

    def put(self, value: T) -> None:
        """Hold what was opened."""
        self._value = value

    def get(self) -> T:
        """Give it."""
        if self._value is None:
            raise RuntimeError("the stage was not opened in this process")
        return self._value

    def __reduce__(self) -> tuple[type[Opened[T]], tuple[()]]:
        return Opened, ()


def find_vision_model(name: str, *, offline: bool = False) -> Path:
    """The folder of a model from what a user typed: a folder, or ``owner/name[@revision]``.

    A repository is fetched into the cache of the hub, unless ``offline``; pickled weights never
    are.

    Raises:
        MissingModelError: there is nothing of that name, or the hub cannot be asked.
    """
    folder = expanded(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise MissingModelError(
                f"{folder}: is no model folder of transformers, it has no config.json",
                hint="name the folder that save_pretrained wrote",
            )
        return folder
    if not _REPOSITORY.fullmatch(name):
        raise MissingModelError(
            f"{name}: no such folder", hint="check the path, or give a repository as owner/name"
        )

    def wanted(names: Collection[str]) -> list[str]:
        return [one for one in names if any(fnmatchcase(one, kind) for kind in _FETCHED)]

    return fetch_files(name, wanted, offline=offline)[0]


def fingerprint_of_folder(folder: Path) -> str:
    """The hash of a model's small files and of the size and both ends of its weights."""
    digest = hashlib.sha256()
    weights = 0
    for path in sorted(folder.iterdir()):
        if path.suffix != ".safetensors" and path.suffix not in _SMALL:
            continue
        size = path.stat().st_size
        digest.update(f"{path.name}:{size};".encode())
        with path.open("rb") as file:
            if path.suffix in _SMALL:
                digest.update(file.read())
                continue
            weights += 1
            digest.update(file.read(_END))
            file.seek(max(0, size - _END))
            digest.update(file.read())
    if not weights:
        raise WeightsError(
            f"{folder}: has no weights in safetensors files",
            hint="pickled weights are never read: choose a revision that has model.safetensors",
        )
    return digest.hexdigest()


def require_same(name: str, found: str, expected: str) -> None:
    """Refuse a model that changed since the run was started, or differs on another machine."""
    if found != expected:
        raise WeightsError(
            f"{name}: holds another model than when the run was started",
            hint="run the command again; on a cluster, give all machines the same files",
        )


@dataclass(frozen=True, kw_only=True)
class VisionStage(ABC, Generic[T]):
    """A stage whose model, of the hash ``model_hash``, looks at the pictures of a set.

    ``device``, ``batch_size`` and ``threads`` change the last bits of the arithmetic only, so
    finished units stay when they change.
    """

    training_set: TrainingSet
    model: str
    model_hash: str
    name: str
    dtype: str = "float32"
    device: str = "cpu"
    batch_size: int = 8
    threads: int = 1
    opened: Opened[T] = field(default_factory=Opened, init=False, repr=False)

    @abstractmethod
    def load(self, folder: Path) -> T:
        """The model in a folder, ready for use."""

    def open(self) -> None:
        """Load the model."""
        folder = find_vision_model(self.model)
        require_same(self.model, fingerprint_of_folder(folder), self.model_hash)
        self.opened.put(self.load(folder))

    def pictures(
        self, samples: Sequence[Sample], side: int, unreadable: list[str]
    ) -> Iterator[list[tuple[Sample, Image.Image]]]:
        """Samples with their pictures, in order, a batch at a time; ids of bad ones are noted.

        Raises:
            DataError: no picture of the samples can be read: their folder is gone.
        """
        root, limits = self.training_set.root, self.training_set.limits
        batch = []
        for sample in samples:
            try:
                batch.append((sample, picture_of(root, sample, side=side, limits=limits)))
            except DataError as error:
                unreadable.append(sample.id)
                if len(unreadable) == len(samples):
                    raise DataError(
                        f"{root}: no picture can be read ({error.message})",
                        hint="are the pictures still where they were scanned?",
                    ) from error
            if len(batch) == self.batch_size:
                yield batch
                batch = []
        if batch:
            yield batch


def safe_name(text: str) -> str:
    """A name for a folder on any system: ``Org/Model-2.1@main`` is ``model-2.1``.

    Raises:
        ConfigError: nothing is left of the text.
    """
    last = text.partition("@")[0].rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]
    name = re.sub(r"[^a-z0-9._-]+", "-", last.lower()).strip("-.")[:80]
    if not name:
        raise ConfigError(f"{text!r} gives no name for a folder", hint="choose one with --name")
    return name


def open_model(kind: Any, folder: Path, *, dtype: str, device: str) -> tuple[Any, Any]:
    """Load a model by an auto class, and its processor; frozen, on its device.

    Raises:
        ConfigError: a model of another kind, with code of its own, or one whose processor needs a
            package that is not installed. WeightsError: weights that leave parts of it empty.
    """
    where = device_named(device)
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with other_readers(
            folder,
            ConfigError,
            what=f"cannot be opened by {kind.__name__}",
            hint="captioners are image-text-to-text models, scorers CLIP or SigLIP",
        ):
            model, processor, found = _opened(kind, folder, dtype)
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
    if found["missing_keys"]:
        name = min(found["missing_keys"])
        raise WeightsError(
            f"{folder}: {len(found['missing_keys'])} weights are missing, {name} is one",
            hint="the model would guess: download it again, or name the right folder",
        )
    return model.eval().requires_grad_(False).to(where), processor


def _opened(kind: Any, folder: Path, dtype: str) -> tuple[Any, Any, Any]:
    """The model, its processor, and what was missing."""
    try:
        processor = AutoProcessor.from_pretrained(str(folder), trust_remote_code=False)
        check_rules(getattr(processor, "tokenizer", processor), source=folder)
        model, found = kind.from_pretrained(
            str(folder),
            dtype=DTYPES[dtype],
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except ImportError as error:
        reason = next((line for line in str(error).split("\n") if line.strip()), "")
        raise ConfigError(
            f"{folder}: needs a package that is not installed ({reason.strip()})",
            hint="pip install torchvision serves most models",
        ) from error
    return model, processor, found


@contextmanager
def computing(threads: int, *, batch_size: int) -> Iterator[None]:
    """Run networks without gradients, with a number of threads that decides the last bits.

    Sums are split among threads, so every engine computes a unit with the same number of them.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"{batch_size} at a time do not fit into memory",
            hint=f"try --batch-size {max(1, batch_size // 2)}; finished units stay",
        ) from error
    finally:
        torch.set_num_threads(before)


def picture_of(root: Path, sample: Sample, *, side: int, limits: DecodeLimits) -> Image.Image:
    """The picture of a sample, shrunk until its longer side is at most ``side`` pixels."""
    data = read_place(root, sample.place)
    pixels = decode(data, limits=limits, cover=(side, side)).pixels
    picture = Image.fromarray(pixels)
    if max(picture.size) > side:
        scale = side / max(picture.size)
        size = tuple(max(1, round(length * scale)) for length in picture.size)
        picture = picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    return picture
