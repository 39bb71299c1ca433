"""Shards at an address: fetched whole, checked, kept within a limit, shared by processes."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import fsspec
import pytest

from sanakit.data.loader import folders
from sanakit.data.loader.folders import RemoteFolder
from sanakit.data.loader.loader import Loader
from sanakit.data.shards import ShardFile
from sanakit.errors import ConfigError, DataError
from tiny_shards import damage, write_shards

BUCKETS = {(32, 32): [4, 4, 4], (32, 64): [3]}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "shards", BUCKETS)


@pytest.fixture
def in_memory(shards: Path) -> str:
    """The address of a copy that only this process can read."""
    for path in shards.iterdir():
        with fsspec.open(f"memory://{shards}/{path.name}", "wb") as file:
            file.write(path.read_bytes())
    return f"memory://{shards}"


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other without a pause."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def shown(loader: Loader, count: int = 10) -> list[tuple[list[str], list[str]]]:
    return [(batch.ids, batch.captions) for batch in islice(loader, count)]


def kept(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if not path.name.startswith(".")]


def first_shard(folder: RemoteFolder) -> ShardFile:
    return folder.index().buckets[(32, 32)][0]


def test_any_address_gives_what_the_folder_gives(
    shards: Path, in_memory: str, tmp_path: Path
) -> None:
    expected = shown(Loader(shards, batch_size=3))
    assert shown(Loader(in_memory, batch_size=3, cache=tmp_path / "one")) == expected
    assert len(kept(tmp_path / "one")) == 4
    address = f"file://{shards}"
    with Loader(address, batch_size=3, cache=tmp_path / "two", workers=2) as loader:
        assert shown(loader) == expected
    assert len(kept(tmp_path / "two")) == 4
    assert not list((tmp_path / "two").glob("*.tmp"))


def test_a_shard_is_fetched_once(
    shards: Path, in_memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: Counter[str] = Counter()
    copy = folders._copy

    def counted(address: str, target: Path) -> str:
        fetched[address.rsplit("/", 1)[1]] += 1
        return copy(address, target)

    monkeypatch.setattr(folders, "_copy", counted)
    for _ in range(2):
        shown(Loader(in_memory, batch_size=3, cache=tmp_path / "cache"))
    assert fetched.pop("index.json") == 2
    assert set(fetched.values()) == {1}
    assert len(fetched) == 8


def test_a_cache_that_is_too_small_stays_small_and_changes_no_batch(
    shards: Path, in_memory: str, tmp_path: Path
) -> None:
    expected = shown(Loader(shards, batch_size=3))
    size = max(path.stat().st_size for path in shards.glob("*.tar"))
    loader = Loader(in_memory, batch_size=3, cache=tmp_path / "cache", cache_gb=1.5 * size / 1e9)
    assert shown(loader) == expected
    assert len(kept(tmp_path / "cache")) == 1
    assert not list((tmp_path / "cache").glob("*.tmp"))


def test_the_shard_that_was_not_used_for_longest_goes_first(
    in_memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(10**9, 10**9 + 100))
    utime = folders.os.utime

    def ticking(path: Path) -> None:
        now = next(clock)
        utime(path, (now, now))

    folder = RemoteFolder(url=in_memory, cache=tmp_path / "cache", limit=10**9)
    shards = folder.index().shards
    for shard in shards[:3]:
        folder.holding(shard)
    monkeypatch.setattr(folders.os, "utime", ticking)
    for number in (0, 1, 2, 0):
        folder.holding(shards[number])
    small = RemoteFolder(url=in_memory, cache=tmp_path / "cache", limit=3 * shards[0].bytes + 5000)
    small.holding(shards[3])
    assert {path.name for path in kept(small.cache)} == {shards[n].sha256 for n in (0, 2, 3)}


def test_a_shard_with_another_hash_is_never_kept(in_memory: str, tmp_path: Path) -> None:
    folder = RemoteFolder(url=in_memory, cache=tmp_path / "cache", limit=10**9)
    shard = first_shard(folder)
    with fsspec.open(f"{in_memory}/{shard.file}", "rb") as file:
        data = file.read()
    with fsspec.open(f"{in_memory}/{shard.file}", "wb") as file:
        file.write(data[:-1] + b"!")
    with pytest.raises(DataError, match=r"32x32-00000\.tar could not .* in 3 tries .SHA-256"):
        folder.holding(shard)
    assert not kept(folder.cache)
    assert not list(folder.cache.glob("*.tmp"))


def test_a_connection_that_fails_twice_is_tried_a_third_time(
    in_memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter([ConnectionError("reset"), TimeoutError("slow")])
    copy = folders._copy

    def failing(address: str, target: Path) -> str:
        for error in failures:
            raise error
        return copy(address, target)

    folder = RemoteFolder(url=in_memory, cache=tmp_path / "cache", limit=10**9)
    shard = first_shard(folder)
    monkeypatch.setattr(folders, "_copy", failing)
    assert (folder.holding(shard) / shard.file).stat().st_size == shard.bytes


def test_addresses_that_lead_nowhere_are_refused(tmp_path: Path) -> None:
    for address, said in (
        ("memory://nowhere", "FileNotFoundError"),
        ("gopher://host/shards", "ValueError"),
    ):
        with pytest.raises(DataError, match=f"cannot be read .{said}"):
            Loader(address, batch_size=3, cache=tmp_path)
    with pytest.raises(ConfigError, match=r"switched off(.|\n)*cache=FOLDER"):
        Loader("memory://nowhere", batch_size=3)  # no test may write to the user's cache
    with pytest.raises(ConfigError, match="cache_gb=0 must be above 0"):
        Loader("memory://nowhere", batch_size=3, cache=tmp_path, cache_gb=0)


def test_a_shard_that_vanishes_from_its_address_is_an_error_and_no_hang(
    shards: Path, tmp_path: Path
) -> None:
    with Loader(f"file://{shards}", batch_size=3, cache=tmp_path / "c", workers=1) as loader:
        (shards / "32x64-00000.tar").unlink()
        with pytest.raises(DataError, match=r"32x64-00000\.tar cannot be read"):
            shown(loader)


def test_a_full_disk_is_an_error_that_leaves_nothing(
    in_memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RemoteFolder(url=in_memory, cache=tmp_path / "cache", limit=10**9)
    shard = first_shard(folder)

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(DataError, match=r"cannot be written .No space.*\n.*cache="):
        folder.holding(shard)
    assert not kept(folder.cache)
    assert not list(folder.cache.glob("*.tmp"))


def _hold(folder: RemoteFolder, shard: ShardFile) -> None:
    folder.holding(shard)


def test_processes_that_want_one_shard_share_it(shards: Path, tmp_path: Path) -> None:
    folder = RemoteFolder(url=f"file://{shards}", cache=tmp_path / "cache", limit=10**9)
    shard = first_shard(folder)
    context = get_context("forkserver")
    processes = [context.Process(target=_hold, args=(folder, shard)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert [path.name for path in kept(folder.cache)] == [shard.sha256]
    assert not list(folder.cache.glob("*.tmp"))


def test_damage_at_the_source_is_found_before_a_picture_is_decoded(
    shards: Path, tmp_path: Path
) -> None:
    damage(shards, "32x64/0.1")
    with pytest.raises(DataError, match="SHA-256"):
        shown(Loader(f"file://{shards}", batch_size=3, cache=tmp_path / "cache"))
