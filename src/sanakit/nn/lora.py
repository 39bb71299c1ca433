"""Low-rank changes of a layer's weight (LoRA), put beside it or merged into it, in place.

A layer that is adapted stays the object that it is: its parameters, their names, its hooks and what
it multiplies with, also in 8 or 4 bits. Only its class gains what stands here.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from threading import Lock
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from sanakit.errors import ConfigError

MergeState = tuple[Tensor, Tensor | None, "tuple[Tensor, Tensor | None] | None", list[str]]
_strength: ContextVar[float] = ContextVar("lora_strength", default=1.0)
_counting, _calls, _weighed = Lock(), 0, False
"""Whether any thread weighs: compilers cannot look into a context variable, so it is left alone."""


@contextmanager
def lora_strength(strength: float) -> Iterator[None]:
    """Multiply all changes within the block by a number, in this thread alone.

    Raises:
        ConfigError: it is no finite number.
    """
    if not isinstance(strength, int | float) or not math.isfinite(strength):
        raise ConfigError(f"scale={strength!r} of LoRA is no finite number")
    global _weighed, _calls
    token = _strength.set(strength)
    with _counting:
        _calls += 1
        _weighed = True
    try:
        yield
    finally:
        _strength.reset(token)
        with _counting:
            _calls -= 1
            _weighed = _calls > 0


def _strength_now() -> float:
    return _strength.get() if _weighed else 1.0


class ByAdapter(nn.ModuleDict):
    """Parts of changes by the names of their adapters; by these PEFT's functions find all."""


class Magnitude(nn.Module):
    """What DoRA makes of the length of each row of a weight (arXiv 2402.09353, equation 5)."""

    def __init__(self, weight: Tensor, norms: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.register_buffer("norms", norms, persistent=False)

    def forward(self, factor: float, norms: Tensor | None = None) -> Tensor:
        """What a row is multiplied with after ``factor * up @ down`` was added to it.

        ``norms`` are the three coefficients of its squared length as a polynomial of ``factor``.
        """
        plain, mixed, change = cast(Tensor, self.norms if norms is None else norms).float()
        length = (plain + factor * mixed + factor**2 * change).sqrt()
        return self.weight.flatten().to(length.dtype) / length


class LoraLayer(nn.Module):
    """What a linear layer or a convolution gains: changes by name, of which some are active.

    A change adds ``weight * scale * up @ down`` to the layer's weight, where ``scale`` is the
    file's and ``weight`` the user's. Attributes and parameters are called as in PEFT, whose
    functions read them.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    lora_A: ByAdapter
    lora_B: ByAdapter
    lora_magnitude_vector: ByAdapter
    scales: dict[str, float]
    weights: dict[str, float]
    lora_dropout: dict[str, float]
    active_adapters: list[str]
    merged_adapters: list[str]
    disable_adapters: bool
    unmerged: tuple[Tensor, Tensor | None] | None
    """Weight and bias as they were before a merge."""
    beside: RemovableHandle

    def add(
        self,
        name: str,
        down: Tensor,
        up: Tensor,
        scale: float,
        *,
        bias: Tensor | None = None,
        magnitude: Tensor | None = None,
        dtype: torch.dtype,
        device: torch.device,
        dropout: float = 0.0,
        trained: bool = False,
    ) -> None:
        """Take a change on, which is not active yet; ``trained`` lets its parameters learn."""
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.lora_A[name] = _product(self, down, None, place, is_up=False)
        self.lora_B[name] = _product(self, up, bias, place, is_up=True)
        self.scales[name], self.weights[name], self.lora_dropout[name] = scale, 1.0, dropout
        if magnitude is not None:
            norms = self._norms(name).to(device)
            held = Magnitude(magnitude.detach().to(**place, copy=True), norms)
            self.lora_magnitude_vector[name] = held
        for each in (self.lora_A, self.lora_B, self.lora_magnitude_vector):
            if name in each:
                each[name].requires_grad_(trained).train(self.training)

    def __reduce__(self) -> Any:
        """Copies and files tell the class that a layer had: that of now is made on the spot."""
        return _empty, (type(self).__bases__[1],), self.__dict__

    def set_adapter(self, adapter_names: str | Iterable[str]) -> None:
        """Make the named changes, and no others, act; those of other layers may be among them."""
        self.active_adapters = (
            [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        )

    def delete_adapter(self, adapter_name: str) -> None:
        """Let go of a change."""
        for held in (self.lora_A, self.lora_B, self.lora_magnitude_vector):
            if adapter_name in held:
                del held[adapter_name]
        for values in (self.scales, self.weights, self.lora_dropout):
            values.pop(adapter_name, None)

    @property
    def merged(self) -> bool:
        """Whether any change is in the weight."""
        return self.unmerged is not None

    def merge(self, names: Iterable[str], strength: float = 1.0) -> None:
        """Add the named changes to the weight, summed in fp32; the weight is kept aside.

        Raises:
            ConfigError: they cannot be in this weight, or the sum is not finite.
        """
        own = [name for name in names if name in self.lora_A and name not in self.merged_adapters]
        if not own:
            return
        self._require_mergeable(own)
        weight = self.weight.data
        before = self.unmerged or (weight, None if self.bias is None else self.bias.data)
        wide = torch.promote_types(weight.dtype, torch.float32)
        total, first = weight.to(wide), before[0].to(weight.device, wide)
        shift: Tensor | None = None if self.bias is None else self.bias.data.to(wide)
        for name in own:
            factor = strength * self.weights[name] * self.scales[name]
            change = factor * self._change(name)
            if name in self.lora_magnitude_vector:
                ratio = self._ratio(name, factor).to(wide).view(-1, *[1] * (weight.ndim - 1))
                change = (ratio - 1) * first + ratio * change
            total = total + change
            added = self._up(name).bias
            if added is not None and shift is not None:
                shift = shift + factor * added.data
        if not (total.isfinite().all() and (shift is None or shift.isfinite().all())):
            raise ConfigError(f"LoRA {', '.join(own)}: merged weights are not finite")
        self.unmerged = before
        self.weight.data = total.to(weight.dtype)
        if self.bias is not None and shift is not None:
            self.bias.data = shift.to(self.bias.dtype)
        self.merged_adapters += own

    def state_of_merge(self) -> MergeState:
        """What :meth:`back_to` takes."""
        bias = None if self.bias is None else self.bias.data
        return self.weight.data, bias, self.unmerged, list(self.merged_adapters)

    def back_to(self, state: MergeState) -> None:
        """Undo what was merged since :meth:`state_of_merge`."""
        self.weight.data, bias, self.unmerged, self.merged_adapters = state
        if self.bias is not None and bias is not None:
            self.bias.data = bias

    def unmerge(self) -> None:
        """Undo all merges, to the bit, in the dtype and place that the layer has now."""
        if self.unmerged is None:
            return
        weight, bias = self.unmerged
        self.weight.data = weight.to(self.weight.device, self.weight.dtype)
        if self.bias is not None and bias is not None:
            self.bias.data = bias.to(self.bias.device, self.bias.dtype)
        self.unmerged, self.merged_adapters = None, []

    def changed(self, name: str, x: Tensor, plain: Tensor, y: Tensor) -> Tensor:
        """Add one change of ``plain``, what the layer makes of ``x``, to ``y``."""
        down, up = self.lora_A[name], self._up(name)
        factor = _strength_now() * self.weights[name] * self.scales[name]
        x = F.dropout(x.to(up.weight.dtype), self.lora_dropout[name], self.training)
        change = factor * up(down(x))
        if name in self.lora_magnitude_vector:
            spread = (1, -1, 1, 1) if isinstance(self, nn.Conv2d) else (-1,)
            ratio = self._ratio(name, factor).view(spread)
            bare = plain if self.bias is None else plain - self.bias.view(spread)
            change = (ratio - 1) * bare + ratio * change
        return y + change.to(y.dtype)

    def _up(self, name: str) -> nn.Linear | nn.Conv2d:
        return cast(nn.Linear, self.lora_B[name])

    def _change(self, name: str) -> Tensor:
        """``up @ down`` in the weight's shape, fp32 at least."""
        down, up = cast(nn.Linear, self.lora_A[name]).weight, self._up(name).weight
        wide = torch.promote_types(up.dtype, torch.float32)
        product = up.data.to(wide).flatten(1) @ down.data.to(wide).flatten(1)
        return product.view(len(up), *down.shape[1:])

    def _norms(self, name: str) -> Tensor:
        weight = self.weight.data.float().flatten(1)
        change = self._change(name).to(weight).flatten(1)
        return torch.stack([(weight**2).sum(1), 2 * (weight * change).sum(1), (change**2).sum(1)])

    def _ratio(self, name: str, factor: float) -> Tensor:
        magnitude = cast(Magnitude, self.lora_magnitude_vector[name])
        learns = magnitude.weight.requires_grad
        return cast(Tensor, magnitude(factor, self._norms(name) if learns else None))

    def _require_mergeable(self, names: list[str]) -> None:
        reason = ""
        if not is_plain(self):
            reason = "it is quantized"
        elif self.weight.is_meta:
            reason = "its weights are offloaded layer by layer"
        elif getattr(self, "groups", 1) > 1:
            reason = "it is a grouped convolution"
        elif self.bias is None and any(self._up(name).bias is not None for name in names):
            reason = "the LoRA has a bias and the layer has none"
        if reason:
            raise ConfigError(
                f"LoRA {', '.join(names)} cannot be merged into a {type(self).__name__}: {reason}",
                hint="leave it beside the weights, where it acts as well",
            )


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer's weight is real numbers, not those of a quantization."""
    weight = layer.weight
    return isinstance(weight, Tensor) and type(weight.data) is Tensor and weight.is_floating_point()


def adapt(layer: nn.Module) -> LoraLayer:
    """Make a linear layer or a convolution able to carry changes; it stays the same object."""
    if isinstance(layer, LoraLayer):
        return layer
    layer.__class__ = _adapted(type(layer))  # type: ignore[arg-type]  # types are hashable
    adapted = cast(LoraLayer, layer)
    for name in ("lora_A", "lora_B", "lora_magnitude_vector"):
        setattr(adapted, name, ByAdapter())
    adapted.scales, adapted.weights, adapted.lora_dropout = {}, {}, {}
    adapted.active_adapters, adapted.merged_adapters = [], []
    adapted.disable_adapters, adapted.unmerged = False, None
    # A hook, because whoever offloads layers puts a forward of their own on the object.
    adapted.beside = adapted.register_forward_hook(_beside)
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    if tuners is not None:  # where the user has it, its functions shall find what is an adapter's
        tuners.BaseTunerLayer.register(ByAdapter)
    return adapted


def restore(layer: nn.Module) -> None:
    """Undo :func:`adapt`; what is merged stays in the weight."""
    assert isinstance(layer, LoraLayer)
    layer.beside.remove()
    for name in LoraLayer.__annotations__.keys() - {"weight", "bias"}:
        delattr(layer, name)
    layer.__class__ = type(layer).__bases__[1]


def lora_layers(module: nn.Module) -> dict[str, LoraLayer]:
    """The layers of a network that carry changes, by name."""
    return {name: each for name, each in module.named_modules() if isinstance(each, LoraLayer)}


@cache
def _adapted(kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (LoraLayer, kind), {"__module__": __name__})


def _empty(kind: type[nn.Module]) -> nn.Module:
    adapted = _adapted(kind)  # type: ignore[arg-type]  # types are hashable
    return adapted.__new__(adapted)


def _beside(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    assert isinstance(layer, LoraLayer)
    y = output
    if layer.disable_adapters or _strength_now() == 0:
        return y
    for name in layer.active_adapters:
        if name in layer.lora_A and name not in layer.merged_adapters:
            y = layer.changed(name, inputs[0], output, y)
    return y


def _product(
    layer: nn.Module, matrix: Tensor, bias: Tensor | None, place: dict[str, Any], *, is_up: bool
) -> nn.Module:
    """One factor of a change as a layer of its own."""
    made: nn.Linear | nn.Conv2d
    options: dict[str, Any] = {"bias": bias is not None, "device": "meta"}
    if isinstance(layer, nn.Conv2d):
        own: dict[str, Any] = {"kernel_size": 1, "groups": layer.groups}
        if not is_up:
            own = {
                name: getattr(layer, name)
                for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")
            }
        inputs = matrix.shape[1] * own.get("groups", 1)
        made = nn.Conv2d(inputs, len(matrix), **own, **options)
    else:
        made = nn.Linear(matrix.shape[1], len(matrix), **options)
    made.weight = nn.Parameter(matrix.detach().to(**place, copy=True))
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().to(**place, copy=True))
    return made
