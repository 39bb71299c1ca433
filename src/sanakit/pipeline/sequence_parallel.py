"""One picture on several processes, exactly: each computes some rows of every map.

Linear attention needs little of the other rows: sums of keys and values, ``dh (dh + 1)`` numbers a
head. A convolution needs the rows beside its own (a halo). All else sees one position at a time.
Whatever the processes made by themselves, the state of process 0 is what a network is given, and
each of them gets the whole result.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sanakit.errors import ConfigError, LostProcess
from sanakit.models.autoencoder import Autoencoder, Decoder
from sanakit.models.published import say_once
from sanakit.models.tiny_decoder import TinyDecoder
from sanakit.nn.embed import PatchEmbed
from sanakit.nn.linear_attention import LinearAttention
from sanakit.nn.multiscale_attention import MultiscaleLinearAttention
from sanakit.shapes import Map

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for another: for its model to be loaded, at first."""


class Stripes:
    """The processes that share a picture, and the rows of a network's coarsest map that each has.

    The first processes have a row more where rows cannot be shared evenly. A map with too few rows
    is computed whole by each.
    """

    def __init__(self) -> None:
        together = dist.is_initialized()
        self.rank = dist.get_rank() if together else 0
        self.count = dist.get_world_size() if together else 1
        self.rows = [0] * self.count

    @property
    def first(self) -> bool:
        """Whether this is process 0, which writes and prints."""
        return self.rank == 0

    def share(self, rows: int, least: int = 1) -> None:
        """Share so many rows; each process needs ``least`` of them."""
        base, more = divmod(rows, self.count)
        if base < least:
            self.rows = [rows]
            if self.first:
                say_once(
                    f"{rows} rows are too few for {self.count} processes: each computes them all"
                )
            return
        self.rows = [base + (rank < more) for rank in range(self.count)]

    def cut(self, whole: Tensor, dim: int) -> Tensor:
        """The part of this process of what ``dim`` holds row by row."""
        return whole if self._alone else whole.split(self._sizes(whole.shape[dim]), dim)[self.rank]

    def gather(self, part: Tensor, dim: int) -> Tensor:
        """The whole of which every process has a part."""
        if self._alone:
            return part
        sizes = self._sizes(part.shape[dim] // self.rows[self.rank] * sum(self.rows))
        part = part.movedim(dim, 0)
        padded = part.new_zeros(max(sizes), *part.shape[1:])
        padded[: len(part)] = part
        parts = [torch.empty_like(padded) for _ in sizes]
        with _answered():
            dist.all_gather(parts, padded)
        cut = [each[:size] for each, size in zip(parts, sizes, strict=True)]
        return torch.cat(cut).movedim(0, dim)

    def total(self, part: Tensor) -> Tensor:
        """The sum of what the processes have."""
        if not self._alone:
            part = part.contiguous()
            with _answered():
                dist.all_reduce(part)
        return part

    def of_first(self, x: Tensor) -> Tensor:
        """The tensor of process 0."""
        x = x.clone(memory_format=torch.contiguous_format)
        with _answered():
            dist.broadcast(x, src=0)
        return x

    def with_halo(self, x: Map, reach: int) -> Map:
        """A map with so many rows of the processes above and below, where there are any."""
        if self._alone:
            return x
        above, below = self._halo(reach)
        edges = [(self.rank - 1, x[:, :, :above]), (self.rank + 1, x[:, :, x.shape[2] - below :])]
        sent = [(peer, edge.contiguous()) for peer, edge in edges if edge.shape[2]]
        got = {peer: torch.empty_like(edge) for peer, edge in sent}
        operations = [dist.P2POp(dist.isend, edge, peer) for peer, edge in sent]
        operations += [dist.P2POp(dist.irecv, edge, peer) for peer, edge in got.items()]
        with _answered():
            for request in dist.batch_isend_irecv(operations):
                request.wait()
        last = x.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format
        got = {peer: edge.contiguous(memory_format=layout) for peer, edge in got.items()}
        around = (got.get(self.rank - 1), x, got.get(self.rank + 1))
        return torch.cat([each for each in around if each is not None], dim=2)

    def without_halo(self, y: Map, reach: int) -> Map:
        """Cut off what was made of rows of others."""
        above, below = (0, 0) if self._alone else self._halo(reach)
        return y[:, :, above : y.shape[2] - below]

    def _halo(self, reach: int) -> tuple[int, int]:
        return reach * (self.rank > 0), reach * (self.rank + 1 < self.count)

    @property
    def _alone(self) -> bool:
        return len(self.rows) == 1

    def _sizes(self, length: int) -> list[int]:
        return [length // sum(self.rows) * rows for rows in self.rows]


@contextmanager
def sequence_parallel(*networks: nn.Module) -> Iterator[Stripes]:
    """Within the block the processes that torchrun started compute these networks together.

    ``with sequence_parallel(pipe.transformer, pipe.vae) as ranks:`` every process draws the same
    picture, and ``ranks.first`` is one of them. Without torchrun nothing changes. Networks are
    transformers, control branches and, for decoding, autoencoders; no gradient goes through.

    Raises:
        LostProcess: another process is gone, or did not answer for the time of the process group:
            ten minutes, unless it was made before.
    """
    join()
    ranks = Stripes()
    with ExitStack() as ends:
        if ranks.count > 1:
            for network in networks:
                ends.enter_context(_striped(network))
        yield ranks


def join() -> None:
    """Take this process's place among those that torchrun started, where it has none yet."""
    if dist.is_initialized() or os.environ.get("WORLD_SIZE", "1") == "1":
        return
    try:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group(timeout=TIMEOUT)
    except (RuntimeError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"the processes that torchrun started do not find each other ({reason})",
            hint="torchrun --nproc-per-node 2 -m sanakit generate ...",
        ) from error


@contextmanager
def _striped(network: nn.Module) -> Iterator[None]:
    stripes = Stripes()
    tiled = network if isinstance(network, Autoencoder) else None
    parts = list((network if tiled is None else tiled.decoder).modules())
    tiling = tiled and tiled.tiling
    convolutions = [part for part in parts if isinstance(part, nn.Conv2d) and part.padding[0]]
    reach = max((int(part.padding[0]) for part in convolutions), default=0)

    def total(part: Tensor) -> Tensor:
        return stripes.total(part)

    def first_latent(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (stripes.of_first(inputs[0]), *inputs[1:])

    def some_tokens(patches: PatchEmbed, inputs: tuple[Any, ...], tokens: Tensor) -> Tensor:
        stripes.share(inputs[0].shape[2] // int(patches.proj.stride[0]))
        return stripes.cut(tokens, dim=1)

    def all_tokens(_: nn.Module, inputs: tuple[Any, ...], tokens: Tensor) -> Tensor:
        return stripes.gather(tokens, dim=1)

    def some_rows(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        whole = stripes.of_first(inputs[0])
        stripes.share(whole.shape[2], least=reach)
        return (stripes.cut(whole, dim=2),)

    def all_rows(_: nn.Module, inputs: tuple[Any, ...], part: Tensor) -> Tensor:
        return stripes.gather(part, dim=2)

    def halo(conv: nn.Conv2d, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (stripes.with_halo(inputs[0], int(conv.padding[0])),)

    def no_halo(conv: nn.Conv2d, inputs: tuple[Any, ...], y: Tensor) -> Tensor:
        times = y.shape[2] // inputs[0].shape[2]
        return stripes.without_halo(y, times * int(conv.padding[0]))

    with ExitStack() as ends:

        def before(part: nn.Module, hook: Any) -> None:
            ends.callback(part.register_forward_pre_hook(hook).remove)

        def after(part: nn.Module, hook: Any) -> None:
            ends.callback(part.register_forward_hook(hook).remove)

        for part in parts:
            if isinstance(part, PatchEmbed):
                before(part, first_latent)
                after(part, some_tokens)
            elif isinstance(part, Decoder | TinyDecoder):
                before(part, some_rows)
                after(part, all_rows)
            elif isinstance(part, LinearAttention | MultiscaleLinearAttention):
                part.total = total
                ends.callback(setattr, part, "total", None)
        for part in convolutions:
            before(part, halo)
            after(part, no_halo)
        if isinstance(head := getattr(network, "proj_out", None), nn.Module):
            after(head, all_tokens)
        if tiled is not None and tiling is not None:
            if stripes.first:
                say_once("no tiles are cut of a picture whose rows several processes share")
            tiled.tiling = None
            ends.callback(setattr, tiled, "tiling", tiling)
        yield


@contextmanager
def _answered() -> Iterator[None]:
    """Say in our words that another process does not answer."""
    try:
        yield
    except RuntimeError as error:
        raise LostProcess(
            "another process of this picture is gone or does not answer",
            hint="its own message says why; start all of them again",
        ) from error
