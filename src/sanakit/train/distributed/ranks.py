"""The processes of one run: who I am, what we agree on, whose error ended us, and who hangs."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, ProcessGroup, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from sanakit.errors import ConfigError
from sanakit.train.config import Strategy

CAUSE = "cause"


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The ranks of a run; alone, there is one and nothing is sent."""

    rank: int = 0
    count: int = 1
    local: int = 0
    """Number of this rank on its machine."""
    per_machine: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    store: Store | None = None
    """What all ranks can read and write while a collective hangs."""
    side: ProcessGroup | None = None
    """For messages that are sent beside the training's own."""

    @property
    def first(self) -> bool:
        """Whether this is the rank that prints, and writes what is written once."""
        return self.rank == 0

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over all ranks."""
        if self.count == 1:
            return list(values)
        together = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(together)
        return together.tolist()

    def means(self, values: Mapping[str, float]) -> dict[str, float]:
        """Means over all ranks; every rank gives the same names."""
        sums = self.total(list(values.values()))
        return {name: value / self.count for name, value in zip(values, sums, strict=True)}

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.count > 1:
            dist.barrier()

    def mesh(self, strategy: Strategy) -> DeviceMesh:
        """The ranks as a mesh: one dimension of shards (fsdp), or copies by shards (hsdp).

        Raises:
            ConfigError: hsdp on machines that do not hold the same number of ranks.
        """
        kind = self.device.type
        if strategy == "fsdp":
            return init_device_mesh(kind, (self.count,), mesh_dim_names=("shard",))
        if self.count % self.per_machine:
            raise ConfigError(
                f"hsdp: {self.count} ranks are not whole machines of {self.per_machine}",
                hint="start the same number of processes on every machine, or use fsdp",
            )
        shape = (self.count // self.per_machine, self.per_machine)
        return init_device_mesh(kind, shape, mesh_dim_names=("copy", "shard"))

    def tell(self, doing: str) -> None:
        """Leave what this rank is doing for the others to see."""
        if self.store is not None:
            self.store.set(f"doing-{self.rank}", doing)

    def told(self) -> list[str]:
        """What each rank says that it is doing."""
        if self.store is None:
            return []
        keys = [f"doing-{rank}" for rank in range(self.count)]
        return [
            f"rank {rank} {self.store.get(key).decode(errors='replace')}"
            for rank, key in enumerate(keys)
            if self.store.check([key])
        ]

    def blame(self, cause: str) -> bool:
        """Leave the cause of the end for all to see; True for the first one who does."""
        if self.store is None:
            return True
        signed = f"{self.rank} {cause}"  # two ranks may say the same words
        return self.store.compare_set(CAUSE, "", signed) == signed.encode()

    def blamed(self) -> str | None:
        """The cause that some rank has left, if any."""
        if self.store is None or not self.store.check([CAUSE]):
            return None
        return self.store.get(CAUSE).decode(errors="replace").split(" ", 1)[1]


def join_ranks(device: str = "auto", *, timeout_minutes: float = 20.0) -> Ranks:
    """Take this process's place among the ranks that `torchrun` started; alone without it.

    Raises:
        ConfigError: ``device`` is not on this machine.
    """
    local = int(os.environ.get("LOCAL_RANK", 0))
    place = _device(device, local)
    if "WORLD_SIZE" not in os.environ:
        return Ranks(device=place)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if not dist.is_initialized():
        # Gloo for CPU tensors also on GPUs: checkpoints and votes go that way.
        backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(minutes=timeout_minutes))
    rank, count = dist.get_rank(), dist.get_world_size()
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # torchrun's own store serves the job; a client of it may be asked from another thread.
    store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=30))
    name = f"sanakit/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    return Ranks(
        rank=rank,
        count=count,
        local=local,
        per_machine=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        device=place,
        store=PrefixStore(name, store),
        side=dist.new_group(backend="gloo"),
    )


def leave_ranks() -> None:
    """End the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _device(name: str, local: int) -> torch.device:
    if name == "auto":
        return torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device={name!r}: {error}", hint="cpu, cuda or auto") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={name!r}: no CUDA device here", hint="use --set device=cpu")
    return torch.device("cuda", local) if name == "cuda" else device


EXIT_CODE = 70
"""Of a process that the watchdog ends."""
HANG = "the job hangs, "


class Watchdog:
    """Beat it after every step; leave it with :meth:`stop`."""

    def __init__(
        self, ranks: Ranks, run: Path, *, hang_minutes: float, look_seconds: float = 1.0
    ) -> None:
        self.ranks, self.run = ranks, run
        self.hang_seconds = 60 * hang_minutes
        self.look_seconds = look_seconds
        self.doing = "starting"
        self._beaten = time.monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def beat(self, doing: str) -> None:
        """Say that this rank is alive, and what it does next."""
        self.doing, self._beaten = doing, time.monotonic()

    def stop(self) -> None:
        """End the watch."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def fail(self, error: BaseException) -> bool:
        """Leave an error of this rank as the cause for all; True if it is the first."""
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        return self._blame(f"rank {self.ranks.rank}, {self.doing}: {text}")

    def _watch(self) -> None:
        while not self._stopped.wait(self.look_seconds):
            try:
                self.ranks.tell(self.doing)
                silent = time.monotonic() - self._beaten
                if silent > self.hang_seconds:
                    where = "; ".join(self.ranks.told())
                    cause = f"{HANG}no step for {silent:.0f} s: {where}"
                    if self._blame(cause):
                        print(f"error: {cause}", file=sys.stderr, flush=True)
                cause = self.ranks.blamed() or ""
            except (RuntimeError, OSError):
                cause = "the launcher or the first rank is gone"
                print(f"error: rank {self.ranks.rank}: {cause}", file=sys.stderr, flush=True)
            # A rank that failed by an error ends by itself; the others sit in a collective.
            if cause and not self._stopped.wait(self.look_seconds):
                if cause.startswith(HANG):
                    self._write_stacks()
                os._exit(EXIT_CODE)

    def _blame(self, cause: str) -> bool:
        try:
            return self.ranks.blame(cause)
        except (RuntimeError, OSError):  # the store is gone: so is the first rank or its launcher
            return True

    def _write_stacks(self) -> None:
        path = self.run / f"stacks-rank-{self.ranks.rank}.txt"
        try:
            with path.open("w", encoding="utf-8") as file:
                file.write(f"rank {self.ranks.rank}, {self.doing}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            text = f"rank {self.ranks.rank}: no stacks ({error})\n"
        print(text, file=sys.stderr, flush=True)
