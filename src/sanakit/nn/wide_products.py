"""Products of 16-bit weights in fp32, where a processor would emulate them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import reduce, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from sanakit.nn.inference import product
from sanakit.nn.processor import HALF
from sanakit.nn.ways import is_emulated

P = ParamSpec("P")
R = TypeVar("R")


def wide_products(weight: Tensor) -> AbstractContextManager[object]:
    """A context in which products in the dtype of ``weight`` are fp32 where they'd be emulated.

    Weights stay stored in 16 bits. Each product takes fp32 copies of its operands, one layer's at a
    time, and its result is rounded to the dtype that it would have had: what units for 16 bits
    give, whose sums are fp32 too. Where no product would be emulated it is no context at all.
    """
    return WideProducts() if is_emulated(weight) else nullcontext()


def with_wide_products(method: Callable[P, R]) -> Callable[P, R]:
    """A method of a module, such as a forward, that runs in `wide_products` of its weights."""

    @wraps(method)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():  # a compiler chooses its own kernels
            return method(*args, **kwargs)
        module = args[0]
        assert isinstance(module, nn.Module)
        with wide_products(next(module.parameters())):
            return method(*args, **kwargs)

    return run


def with_wide_activations(method: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """`with_wide_products`, and what goes from product to product is fp32 as well.

    To round it each time takes as long as to widen the weights. The result has the dtype of the
    first argument. Where gradients are wanted, which keep all of it, only products are fp32.
    """
    narrow = with_wide_products(method)

    @wraps(method)
    def run(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        first = args[1]
        assert isinstance(first, Tensor)
        compiling = torch.compiler.is_compiling()
        if compiling or torch.is_grad_enabled() or not is_emulated(first):
            return narrow(*args, **kwargs)
        wide_args, wide_kwargs = tree_map_only(Tensor, _widened, (args[1:], dict(kwargs)))
        return narrow(args[0], *wide_args, **wide_kwargs).to(first.dtype)  # type: ignore[arg-type]

    return run


def _widened(x: Tensor) -> Tensor:
    return x.float() if x.dtype in HALF else x


def each_with_wide_products(parts: Iterator[R], weight: Tensor) -> Iterator[R]:
    """Parts that are made one by one, each in `wide_products`; who takes them is outside of it."""
    while True:
        with wide_products(weight):
            part = next(parts, None)
        if part is None:
            return
        yield part


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``, by the library that is faster."""
    return product(input, weight, bias)


class WideProducts(TorchFunctionMode):
    """Computes products of 16-bit tensors in memory of the host in fp32; see `wide_products`.

    Where no gradients are wanted all weights are widened into one buffer, in turn: to come by new
    memory for each would take as long as to fill it. (A backward pass would read them later.)
    """

    products = frozenset(
        (
            *("linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm"),
            *("conv1d", "conv2d", "conv3d", "conv_transpose2d", "scaled_dot_product_attention"),
        )
    )

    weighed = frozenset(("linear", "conv1d", "conv2d", "conv_transpose2d"))
    """Those whose second operand is a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = torch.empty(0)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run a function of torch."""
        kwargs = kwargs or {}
        if func.__name__ not in self.products:
            return func(*args, **kwargs)
        tensors = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
        half = [each for each in tensors if each.dtype in HALF and each.device.type == "cpu"]
        # Quantized tensors multiply by themselves.
        plain = all(type(each) in (Tensor, nn.Parameter) for each in tensors)
        if not half or not plain or "out" in kwargs:
            return func(*args, **kwargs)
        floats = [each.dtype for each in tensors if each.is_floating_point()]
        result = reduce(torch.promote_types, floats)
        weight: Any = None
        if func.__name__ in self.weighed and not torch.is_grad_enabled():
            weight = kwargs.get("weight", args[1] if len(args) > 1 else None)

        def widened(value: Any) -> Any:
            if not isinstance(value, Tensor) or value.dtype not in HALF:
                return value
            return self._buffered(value) if value is weight else value.float()

        named = {name: widened(value) for name, value in kwargs.items()}
        run = linear if func.__name__ == "linear" else func
        return run(*map(widened, args), **named).to(result)

    def _buffered(self, weight: Tensor) -> Tensor:
        """A copy in fp32, with the strides of its original, that holds until the next one."""
        if self.buffer.numel() < weight.numel():
            self.buffer = torch.empty(weight.numel())
        layouts = (torch.contiguous_format, torch.channels_last)[: 2 if weight.ndim == 4 else 1]
        if not any(weight.is_contiguous(memory_format=layout) for layout in layouts):
            return weight.float()
        return self.buffer.as_strided(weight.shape, weight.stride()).copy_(weight)
