"""What a folder of built shards holds, as the loader needs it: buckets in order, nothing empty."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import fsspec
from filelock import FileLock

from sanakit.data.shards import INDEX, KEYS, Index, ShardFile, read_index
from sanakit.data.units import fingerprint
from sanakit.errors import ConfigError, DataError
from sanakit.files import cache_folder, discard_folder, disk_errors, replacing_folder

_BLOCK = 1 << 20
_GB = 10**9
_CACHE_GB = 50.0
_TRIES = 3
_ABANDONED = 24 * 3600.0  # seconds after which an unfinished download was given up
_FOREIGN = "the shard is not the one of index.json: build again, or copy it again"


class ShardFolder(Protocol):
    """A place of built shards. It is pickled to worker processes."""

    @property
    def name(self) -> str:
        """The path or address, for errors."""

    def index(self) -> Index:
        """Read the list of shards."""

    def holding(self, shard: ShardFile) -> Path:
        """A local folder where the shard's files are whole, until another one is asked for."""


@dataclass(frozen=True, kw_only=True)
class LocalFolder:
    """Shards on this machine, or on a disk that looks so."""

    folder: Path

    @property
    def name(self) -> str:
        """The path."""
        return str(self.folder)

    def index(self) -> Index:
        """Read `index.json`.

        Raises:
            DataError: there is none, or it is damaged.
        """
        found = read_index(self.folder)
        if found is None:
            inside = self.folder / "shards"
            raise DataError(
                f"{self.folder} holds no built shards: {INDEX} is missing",
                hint=f"give {inside}"
                if (inside / INDEX).is_file()
                else "make them: sanakit data build PICTURES --out SET, then give SET/shards",
            )
        return found

    def holding(self, shard: ShardFile) -> Path:
        """The folder itself."""
        path = self.folder / shard.file
        try:
            size = path.stat().st_size
        except OSError as error:
            raise DataError(
                f"{path} cannot be read ({error.strerror or error})",
                hint="build again: finished shards are kept, missing ones are made",
            ) from error
        if size != shard.bytes:
            raise DataError(f"{path} has {size} bytes instead of {shard.bytes}", hint=_FOREIGN)
        return self.folder


@dataclass(frozen=True, kw_only=True)
class RemoteFolder:
    """Shards at an address of fsspec, fetched whole into ``cache``, named by their SHA-256.

    Any number of processes share a cache. Over ``limit`` bytes, the shards go that were opened
    longest ago; a process that still reads one keeps its bytes until it closes the file.
    """

    url: str
    cache: Path
    limit: int

    @property
    def name(self) -> str:
        """The address."""
        return self.url

    def index(self) -> Index:
        """Fetch and read `index.json`; it is never kept."""
        with tempfile.TemporaryDirectory() as folder:
            self._fetch(INDEX, Path(folder) / INDEX, "")
            found = read_index(Path(folder))
        assert found is not None
        return found

    def holding(self, shard: ShardFile) -> Path:
        """Fetch the shard unless it is in the cache."""
        place = self.cache / shard.sha256
        with disk_errors(place, hint="make room, or name another folder: cache="):
            self.cache.mkdir(parents=True, exist_ok=True)
            if _touched(place):
                return place
            # One process fetches, the others wait; the lock of one that dies is free again.
            with FileLock(self.cache / f".{shard.sha256}.lock"):
                if _touched(place):
                    return place
                self._fill(place, shard)
        self._evict(keep=place)
        return place

    def _fill(self, place: Path, shard: ShardFile) -> None:
        with replacing_folder(place) as unfinished:
            self._fetch(shard.file, unfinished / shard.file, shard.sha256)
            keys = f"{shard.unit}{KEYS}"
            self._fetch(keys, unfinished / keys, "")

    def _fetch(self, name: str, target: Path, digest: str) -> None:
        """Copy a file here, a few times if need be; ``digest`` is its SHA-256 where it is known."""
        address = f"{self.url.rstrip('/')}/{name}"
        for left in reversed(range(_TRIES)):
            try:
                found = _copy(address, target)
                if digest in ("", found):
                    return
                problem = f"SHA-256 {found[:16]}... instead of {digest[:16]}..."
                hint = _FOREIGN
            except (FileNotFoundError, ImportError, ValueError) as error:
                raise DataError(
                    f"{address} cannot be read ({type(error).__name__}: {error})",
                    hint="check the address; some kinds need a package, such as s3fs for s3://",
                ) from error
            except Exception as error:  # each protocol has errors of its own
                problem, hint = f"{type(error).__name__}: {error}", "check the connection"
            if left:
                time.sleep(0.5 * (_TRIES - left))
        raise DataError(f"{address} could not be fetched in {_TRIES} tries ({problem})", hint=hint)

    def _evict(self, *, keep: Path) -> None:
        """Remove the longest unused shards until the rest is within the limit."""
        now = time.time()
        found = []
        for path in self.cache.iterdir():
            age = _ask(path, lambda path: path.stat().st_mtime)
            if path.suffix == ".tmp" and age is not None and now - age > _ABANDONED:
                shutil.rmtree(path, ignore_errors=True)
            if not path.name.startswith(".") and age is not None:
                size = _ask(path, lambda path: sum(f.stat().st_size for f in path.iterdir()))
                found.append((path != keep, age, path, size or 0))
        total = sum(size for *_, size in found)
        # The kept one sorts last here, whatever its age.
        for other, _, path, size in sorted(found, key=lambda one: (not one[0], one[1])):
            if total <= self.limit or not other:
                return
            _ask(path, discard_folder)
            total -= size


def open_folder(
    shards: str | Path, *, cache: Path | None = None, cache_gb: float | None = None
) -> ShardFolder:
    """The folder at a path, or at an address with ``://``.

    Raises:
        ConfigError: there is no place for a cache, or a cache for a local folder.
    """
    address = str(shards)
    if "://" not in address:
        if cache is not None or cache_gb is not None:
            given = f"cache_gb={cache_gb}" if cache is None else f"cache={cache}"
            raise ConfigError(f"{given} has no use: {address} is a folder of this machine")
        return LocalFolder(folder=Path(shards))
    cache_gb = _CACHE_GB if cache_gb is None else cache_gb
    if not cache_gb > 0:
        raise ConfigError(f"cache_gb={cache_gb} must be above 0")
    if cache is None:
        ours = cache_folder()
        if ours is None:
            raise ConfigError(
                f"no place to keep the shards of {address}: the cache folder is switched off",
                hint="name one: cache=FOLDER",
            )
        cache = ours / "shards"
    return RemoteFolder(url=address, cache=Path(cache), limit=int(cache_gb * _GB))


def _copy(address: str, target: Path) -> str:
    """Copy a file here and give its SHA-256."""
    digest = hashlib.sha256()
    with fsspec.open(address, "rb") as source, target.open("wb") as file:
        while block := source.read(_BLOCK):
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def _touched(place: Path) -> bool:
    """Whether the shard is there; says to all processes that it was used now."""
    try:
        os.utime(place)
    except FileNotFoundError:
        return False
    return True


def _ask(path: Path, ask: Callable[[Path], Any]) -> Any:
    """What ``ask`` says, None where another process was quicker to remove the file."""
    try:
        return ask(path)
    except OSError:
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class BucketShards:
    """The shards whose pictures are ``height`` x ``width`` pixels, or are to be made so."""

    height: int
    width: int
    shards: tuple[ShardFile, ...]

    @property
    def samples(self) -> int:
        """The number of samples in all shards; at least 1."""
        return sum(shard.samples for shard in self.shards)


@dataclass(frozen=True, kw_only=True)
class Contents:
    """All buckets that hold samples. Equal ``digest``: the same samples in the same places."""

    buckets: tuple[BucketShards, ...]

    @property
    def samples(self) -> int:
        """The number of samples in all buckets."""
        return sum(bucket.samples for bucket in self.buckets)

    @property
    def digest(self) -> str:
        """64 hexadecimal digits that change with any shard, its name, place or content."""
        return fingerprint([asdict(bucket) for bucket in self.buckets])


def contents_of(index: Index, *, source: str) -> Contents:
    """Take over an index; ``source`` names it in errors.

    Raises:
        DataError: it lists no samples, or files outside its folder.
    """
    buckets = []
    for (height, width), shards in index.buckets.items():
        for shard in shards:
            if PurePosixPath(shard.file).name != shard.file or "\\" in shard.file:
                raise DataError(f"{source} names {shard.file!r}, which is outside its folder")
        filled = tuple(shard for shard in shards if shard.samples > 0)
        if filled:
            buckets.append(BucketShards(height=height, width=width, shards=filled))
    if not buckets:
        raise DataError(f"{source} lists no samples", hint="look at the report of the build")
    return Contents(buckets=tuple(buckets))
