"""Latents and text states of built shards, computed once for all epochs of a training run."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sanakit.data.captions.vision_models import (
    DTYPES,
    Opened,
    computing,
    fingerprint_of_folder,
    require_same,
)
from sanakit.data.resize_and_crop import MULTIPLE, fitted
from sanakit.data.shards import TAR, Index, bucket_of, key_of, read_index, read_keys, read_span
from sanakit.data.training_set import LATENTS, SHARDS, TEXT, TrainingSet
from sanakit.data.units import fingerprint, read_mark
from sanakit.errors import ConfigError, DataError, NumericsError
from sanakit.files import sha256_of
from sanakit.images.decode import decode
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.config import AutoencoderConfig, TransformerConfig
from sanakit.pipeline.components import load_prompts, read_defaults
from sanakit.pipeline.networks import AutoencoderDC
from sanakit.pipeline.pixels import Pixels, from_pixels
from sanakit.pipeline.prompts import PromptCache, PromptEncoder
from sanakit.untrusted import parse_json
from sanakit.weights.catalog import find_checkpoint
from sanakit.weights.resolve import component_folder, resolve_model
from sanakit.weights.store import read_config

Storage: TypeAlias = Literal["float16", "bfloat16"]
Stored: TypeAlias = NDArray[np.float16] | NDArray[np.uint16]
STORAGES: tuple[Storage, ...] = ("float16", "bfloat16")
ENDING = ".npz"
ABOUT = "about.json"
NULL = "null"
FORMAT = 1
_LEVEL = 6
_UNIX = 3
_THEN = (1980, 1, 1, 0, 0, 0)  # the earliest date that a zip can hold


def text_key(caption: str) -> str:
    """The name of a caption's states."""
    return sha256_of(caption)


def stored(states: Tensor, storage: Storage) -> Stored:
    """Round states to 16 bits, as they are kept."""
    if storage not in STORAGES:
        raise ConfigError(f"storage {storage!r} is unknown", hint=f"one of {', '.join(STORAGES)}")
    rounded = states.detach().to("cpu", torch.float16 if storage == "float16" else torch.bfloat16)
    if not rounded.isfinite().all():
        largest = float(states.abs().max())
        raise NumericsError(
            f"states of up to {largest:g} cannot be kept as {storage}",
            hint="bfloat16 holds all that is finite: --store bfloat16",
        )
    return (rounded if storage == "float16" else rounded.view(torch.uint16)).numpy()


def write_states(path: Path, states: Iterable[tuple[str, Stored]], about: dict[str, Any]) -> int:
    """Write arrays by name, in the order given; gives their bytes before compression."""
    plain = 0
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=_LEVEL) as file:
        for name, array in states:
            held = io.BytesIO()
            np.lib.format.write_array(held, np.ascontiguousarray(array), version=(1, 0))
            file.writestr(_member(f"{name}.npy"), held.getvalue(), compresslevel=_LEVEL)
            plain += array.nbytes
        text = json.dumps({"format": FORMAT, **about}, sort_keys=True)
        file.writestr(_member(ABOUT), text.encode(), compresslevel=_LEVEL)
    return plain


def _member(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name, _THEN)
    member.compress_type = zipfile.ZIP_DEFLATED
    member.create_system = _UNIX
    member.external_attr = 0o644 << 16
    return member


class CachedStates:
    """The states of one shard; opened at the first question, again in each process.

    ``folder`` is latents/KEY or text/KEY of a set, ``shard`` the name of a shard without ending.
    """

    def __init__(self, folder: str | Path, shard: str) -> None:
        self.folder = Path(folder)
        self.shard = shard
        self._files: dict[str, tuple[int, zipfile.ZipFile]] = {}

    @property
    def about(self) -> dict[str, Any]:
        """What the file says of itself: ``shard_sha256``, ``storage``, ``encoder`` and more."""
        return parse_json(self._bytes(self.shard, ABOUT))

    def latent(self, identity: str) -> Tensor:
        """The scaled latent ``c h w`` of a sample, in the dtype that is stored."""
        return self._tensor(self.shard, key_of(identity), f"sample {identity!r}")

    def text(self, caption: str) -> Tensor:
        """The states ``l d`` of a caption's real tokens; those of the null prompt for ""."""
        return self._tensor(
            self.shard if caption else NULL, text_key(caption), f"caption {caption[:60]!r}"
        )

    def close(self) -> None:
        """Close the files; the next question opens them again."""
        for _, file in self._files.values():
            file.close()
        self._files.clear()

    def __reduce__(self) -> tuple[type[CachedStates], tuple[Path, str]]:
        return CachedStates, (self.folder, self.shard)

    def _tensor(self, name: str, member: str, what: str) -> Tensor:
        data = self._bytes(name, f"{member}.npy", what)
        try:
            array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
        except ValueError as error:
            raise self._damaged(name, error) from error
        tensor = torch.from_numpy(array)
        return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor

    def _bytes(self, name: str, member: str, what: str = "description") -> bytes:
        try:
            return self._open(name).read(member)
        except KeyError as error:
            raise DataError(
                f"{self.folder / name}{ENDING} has no states of {what}",
                hint="run `sanakit data encode` again",
            ) from error
        except (OSError, zipfile.BadZipFile, EOFError, ValueError) as error:
            raise self._damaged(name, error) from error

    def _open(self, name: str) -> zipfile.ZipFile:
        owner, file = self._files.get(name, (0, None))
        if file is None or owner != os.getpid():  # a fork shares the place in its parent's file
            file = zipfile.ZipFile(self.folder / f"{name}{ENDING}")
            self._files[name] = (os.getpid(), file)
        return file

    def _damaged(self, name: str, error: Exception) -> DataError:
        return DataError(
            f"{self.folder / name}{ENDING} is missing or damaged ({error})",
            hint="run `sanakit data encode` again",
        )


VERSION = 1
"""Changes when the same encoder gives other states because of this file."""
MAX_TOKENS = 300


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """What both stages share. Their folder is named by a hash of encoder and settings.

    ``encoder_hash`` identifies the network, ``storage`` how states are kept; ``device``,
    ``batch_size`` and ``threads`` change the last bits only and are in no hash.
    """

    set_folder: Path
    model: str
    encoder_hash: str
    dtype: str = "float32"
    storage: Storage = "float16"
    device: str = "cpu"
    batch_size: int = 8
    threads: int = 1

    @property
    def shards(self) -> Path:
        """Where the built shards are."""
        return self.set_folder.absolute() / SHARDS

    def about(self) -> dict[str, Any]:
        """What identifies the states, beside the shard."""
        return {
            "version": VERSION,
            "encoder": self.encoder_hash,
            "dtype": self.dtype,
            "storage": self.storage,
        }

    @property
    def compute_dtype(self) -> torch.dtype:
        """That of the encoder; fp16 is refused: states that overflow in it would be kept."""
        if self.dtype == "float16":
            raise ConfigError("dtype='float16' overflows in encoders", hint="use bfloat16")
        return DTYPES[self.dtype]

    @property
    def key(self) -> str:
        """Sixteen hex digits of all that."""
        return fingerprint(self.about())[:16]

    def made_from(self, unit: str) -> str:
        """Identify encoder, settings, and the bytes of the shard."""
        return fingerprint(self.about(), "" if unit == NULL else self.shard_hash(unit))

    def shard_hash(self, unit: str) -> str:
        """The SHA-256 of a shard, from its mark."""
        mark = read_mark(self.shards, unit)
        if mark is None:
            raise DataError(
                f"{self.shards}: shard {unit} is not finished",
                hint="run `sanakit data build` again: it goes on where it stopped",
            )
        return mark.files[f"{unit}{TAR}"][1]

    def _write(
        self, unit: str, staging: Path, states: Iterator[tuple[str, Stored]]
    ) -> dict[str, Any]:
        about = {**self.about(), "model": self.model}
        if unit != NULL:
            about["shard_sha256"] = self.shard_hash(unit)
        path = staging / f"{unit}{ENDING}"
        plain = write_states(path, states, about)
        return {"bytes": path.stat().st_size, "plain_bytes": plain}


@dataclass(frozen=True, kw_only=True)
class LatentEncoding(Encoding):
    """The stage: scaled latents of the fitted pictures, in latents/KEY/SHARD.npz."""

    resolution: int
    _autoencoder: Opened[Autoencoder] = field(default_factory=Opened, init=False, repr=False)

    @property
    def folder(self) -> Path:
        """Where they go."""
        return self.set_folder.absolute() / LATENTS / self.key

    def about(self) -> dict[str, Any]:
        """The same, and the resolution, of which a set may have several in turn."""
        return {**super().about(), "kind": "latents", "resolution": self.resolution}

    def open(self) -> None:
        """Load the autoencoder."""
        require_same(self.model, autoencoder_hash(self.model), self.encoder_hash)
        autoencoder = AutoencoderDC.from_pretrained(
            self.model, subfolder="vae", torch_dtype=self.compute_dtype, device_map=self.device
        )
        self._autoencoder.put(autoencoder.requires_grad_(False))

    def process(self, unit: str, staging: Path) -> dict[str, Any]:
        """Encode the pictures of a shard; one that cannot be read is left out and counted."""
        ids = read_keys(self.shards, unit).keys
        unreadable: list[str] = []
        with computing(self.threads, batch_size=self.batch_size):
            stats = self._write(unit, staging, self._latents(unit, unreadable))
        return {"samples": len(ids) - len(unreadable), "unreadable": len(unreadable), **stats}

    def _latents(self, unit: str, unreadable: list[str]) -> Iterator[tuple[str, Stored]]:
        autoencoder = self._autoencoder.get()
        weight = next(autoencoder.parameters())
        for ids, pixels in self._batches(unit, unreadable):
            image = from_pixels(pixels).to(weight.device, weight.dtype)
            latents = autoencoder.encode(image).latent.float() * autoencoder.config.scaling_factor
            for identity, latent in zip(ids, latents, strict=True):
                yield key_of(identity), stored(latent, self.storage)

    def _batches(self, unit: str, unreadable: list[str]) -> Iterator[tuple[list[str], Pixels]]:
        keys = read_keys(self.shards, unit)
        path, bucket = self.shards / f"{unit}{TAR}", bucket_of(unit)
        limits = TrainingSet.open(self.set_folder).limits
        ids: list[str] = []
        pixels = []
        for identity, span in zip(keys.keys, keys.images, strict=True):
            try:
                picture = decode(read_span(path, span), limits=limits, cover=bucket)
                pixels.append(fitted(picture.pixels, bucket))
                ids.append(identity)
            except DataError:
                unreadable.append(identity)
            if len(ids) == self.batch_size:
                yield ids, np.stack(pixels)
                ids, pixels = [], []
        if ids:
            yield ids, np.stack(pixels)


@dataclass(frozen=True, kw_only=True)
class TextEncoding(Encoding):
    """The stage: states of every caption of a shard, in text/KEY/SHARD.npz, and the null prompt.

    Captions stand behind the model's own instruction, of which the first token's state is kept;
    the null prompt, the unit `null`, stands behind none.
    """

    max_tokens: int = MAX_TOKENS
    _prompts: Opened[PromptEncoder] = field(default_factory=Opened, init=False, repr=False)

    @property
    def folder(self) -> Path:
        """Where they go."""
        return self.set_folder.absolute() / TEXT / self.key

    def about(self) -> dict[str, Any]:
        """The same, and the most tokens of a text."""
        return {**super().about(), "kind": "text", "max_tokens": self.max_tokens}

    def open(self) -> None:
        """Load tokenizer and text encoder."""
        require_same(self.model, text_encoder_hash(self.model), self.encoder_hash)
        cache = PromptCache(prompt_bytes=0)
        encoder = load_prompts(
            self.model, dtype=self.compute_dtype, device=self.device, cache=cache
        )
        self._prompts.put(encoder)

    def process(self, unit: str, staging: Path) -> dict[str, Any]:
        """Encode the captions of a shard, each text once."""
        captions = [""] if unit == NULL else self._captions(unit)
        cut: list[str] = []
        with computing(self.threads, batch_size=self.batch_size):
            stats = self._write(unit, staging, self._states(unit, captions, cut))
        return {"captions": 0 if unit == NULL else len(captions), "cut": len(cut), **stats}

    def _states(
        self, unit: str, captions: list[str], cut: list[str]
    ) -> Iterator[tuple[str, Stored]]:
        prompts = self._prompts.get()
        instruction = None if unit == NULL else prompts.instruction
        for start in range(0, len(captions), self.batch_size):
            texts = captions[start : start + self.batch_size]
            encoded = prompts.encode(
                texts, instruction=instruction, max_sequence_length=self.max_tokens
            )
            cut += [text for text, lost in zip(texts, encoded.dropped, strict=True) if lost]
            for text, states, mask in zip(texts, encoded.text, encoded.mask, strict=True):
                yield text_key(text), stored(states[mask], self.storage)

    def _captions(self, unit: str) -> list[str]:
        """Every text once, in order; an empty one is the null prompt's."""
        keys = read_keys(self.shards, unit)
        path = self.shards / f"{unit}{TAR}"
        texts: dict[str, None] = {}
        for span in keys.meta:
            try:
                captions = parse_json(read_span(path, span))["sanakit"]["captions"]
                texts.update((str(caption["text"]), None) for caption in captions)
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path}: the record at byte {span[0]} is damaged ({error})",
                    hint=f"remove the file and run `sanakit data build {self.set_folder}` again",
                ) from error
        return [text for text in texts if text]


def built(set_folder: Path) -> Index:
    """The index of the shards of a set."""
    index = read_index(set_folder / SHARDS)
    if index is None:
        raise DataError(
            f"{set_folder} holds no built shards", hint=f"run: sanakit data build {set_folder}"
        )
    return index


def sizes_of(model: str) -> tuple[int, int]:
    """About the side of the pictures that a model draws, and what their sides are multiples of, px.

    Of a published model it is known, so that none is fetched to ask it.

    Raises:
        MissingModelError: there is no such model. ConfigError: its configs are damaged.
    """
    published = find_checkpoint(model)
    if published is not None and published.resolution is not None:
        return published.resolution, MULTIPLE
    folder = resolve_model(model)
    network = read_config(folder / "transformer", TransformerConfig)
    factor = read_config(folder / "vae", AutoencoderConfig).spatial_factor
    return network.sample_size * factor, network.patch_size * factor


def autoencoder_hash(model: str) -> str:
    """Identify the autoencoder of a model, its scaling factor included."""
    return fingerprint_of_folder(component_folder(model, "vae"))


def text_encoder_hash(model: str) -> str:
    """Identify all that decides text states: the LLM, the tokenizer, the instruction."""
    folder = resolve_model(model)
    tokenizer = [
        (path.name, sha256_of(path))
        for path in sorted((folder / "tokenizer").iterdir())
        if path.is_file()
    ]
    llm = fingerprint_of_folder(folder / "text_encoder")
    return fingerprint(llm, tokenizer, read_defaults(folder).instruction)
