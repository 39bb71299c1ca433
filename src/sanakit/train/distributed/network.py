"""A recipe's module made ready for its ranks: copied or sharded, in its compute dtype.

All calls that touch the module go through one outer module, so that the wrappers of
`torch.distributed`, which act when their module is called, see every one of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from sanakit.nn.processor import HALF, has_units, keep_freed_memory
from sanakit.nn.wide_products import WideProducts
from sanakit.train.config import LoopConfig
from sanakit.train.distributed.loss_scale import ComputeDtype
from sanakit.train.distributed.ranks import Ranks

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
DTYPES: dict[ComputeDtype, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def dtype_of_products(asked: ComputeDtype, device: torch.device) -> torch.dtype:
    """The dtype of products in training: that asked for; fp32 where a CPU would emulate it."""
    emulated = device.type == "cpu" and not has_units(DTYPES[asked])
    return torch.float32 if emulated else DTYPES[asked]


class _Outer(nn.Module):
    """Calls whatever it is given; its parameters are those of the module inside."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, call: Callable[..., Result], *arguments: Any) -> Result:
        """Call ``call`` while this module is being called."""
        return call(*arguments)


class Network:
    """The module of a recipe, spread over the ranks.

    With ``ddp`` every rank holds it whole; with ``fsdp`` and ``hsdp`` its ``blocks`` and what is
    left over are sharded in place (FSDP2) and its parameters become distributed tensors. Sums of
    gradients are fp32. On a CPU this process keeps freed memory from now on.
    """

    def __init__(
        self, module: nn.Module, blocks: Iterable[nn.Module], config: LoopConfig, ranks: Ranks
    ) -> None:
        if ranks.device.type == "cpu":
            keep_freed_memory()
        self.module = module.to(ranks.device)
        self.config = config
        self.device = ranks.device
        self.product_dtype = dtype_of_products(config.compute_dtype, ranks.device)
        self.mixed = False
        if self.product_dtype != DTYPES[config.compute_dtype]:
            if ranks.first:
                logger.warning(
                    "this processor would emulate %s: products are fp32", config.compute_dtype
                )
            self.mixed = any(parameter.dtype in HALF for parameter in module.parameters())
        self.outer: nn.Module = _Outer(module)
        if config.compile_blocks:
            # Every width and grid of an autoencoder's blocks is a shape of its own; the default
            # stops compiling at the eighth.
            torch._dynamo.config.recompile_limit = 64
            for block in blocks:
                block.compile(dynamic=False)
        if ranks.count == 1:
            return
        if config.strategy == "ddp":
            places = [ranks.device] if ranks.device.type == "cuda" else None
            self.outer = DistributedDataParallel(
                self.outer,
                device_ids=places,
                gradient_as_bucket_view=True,
            )
            return
        for parameter in module.parameters():  # FSDP2 takes no other layout
            parameter.data = parameter.data.contiguous()
        mesh = ranks.mesh(config.strategy)
        policy = MixedPrecisionPolicy(
            param_dtype=self.product_dtype if self.product_dtype != torch.float32 else None,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,  # autocast decides, as on one rank
        )
        for block in blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(self.outer, mesh=mesh, mp_policy=policy)

    @property
    def sharded(self) -> bool:
        """Whether parameters are distributed tensors."""
        return isinstance(self.outer, FSDPModule)

    @contextmanager
    def losses(
        self, loss: Callable[[Any], dict[str, Tensor]], batch: Any, *, last: bool
    ) -> Iterator[dict[str, Tensor]]:
        """Compute losses; the last part's backward pass sums gradients over the ranks.

        The backward pass belongs inside the block.
        """
        quiet: AbstractContextManager[Any] = nullcontext()
        if isinstance(self.outer, FSDPModule):
            self.outer.set_requires_gradient_sync(last)
        elif isinstance(self.outer, DistributedDataParallel) and not last:
            quiet = self.outer.no_sync()
        with quiet:
            with self.products():
                found: dict[str, Tensor] = self.outer(loss, batch)
            yield found

    def call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function of the module, such as an evaluation, on every rank alike."""
        # DDP's own forward would get ready for a backward pass that does not come.
        outer = self.outer.module if isinstance(self.outer, DistributedDataParallel) else self.outer
        with self.products():
            return outer(function, *arguments)

    def products(self) -> AbstractContextManager[Any]:
        """Products in the compute dtype, weights and sums in fp32; used in training alone."""
        if self.mixed:  # frozen weights are stored in 16 bits
            return WideProducts()
        return torch.autocast(
            self.device.type,
            self.product_dtype,
            enabled=self.product_dtype != torch.float32,
            cache_enabled=True,
        )
