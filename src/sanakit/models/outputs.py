"""What the networks give back under their published names: by attribute, by key or by index."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from torch.utils import _pytree as pytree

from sanakit.shapes import Image, Latent, Tokens


class ModelOutput(OrderedDict[str, Any]):
    """Base of the dataclasses here: a dict of the fields that are not None, in their order.

    Like a tuple it is indexed by numbers, too. Whoever looks for tensors in nested results (the
    parallel wrappers of torch, compilers, offloading) finds them.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        pytree.register_pytree_node(
            cls,
            lambda output: (list(output.values()), list(output.keys())),
            partial(_made, cls),
            serialized_type_name=f"{cls.__module__}.{cls.__name__}",
        )

    def __post_init__(self) -> None:
        first, *_ = names = [each.name for each in fields(self)]  # type: ignore[arg-type]
        given = {name: getattr(self, name) for name in names}
        if isinstance(given[first], Mapping):  # rebuilt of its own items, as offloading does
            given |= {first: None, **given[first]}
        for name, value in given.items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if value is not None:
            super().__setitem__(name, value)
        super().__setattr__(name, value)

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self, name, value)

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __reduce__(self) -> Any:
        return partial(_made, type(self)), (list(self.values()), list(self.keys()))

    def to_tuple(self) -> tuple[Any, ...]:
        """What is not None, in order."""
        return tuple(self.values())


def _made(kind: type[ModelOutput], values: Any, names: Any) -> ModelOutput:
    return kind(**dict(zip(names, values, strict=True)))


@dataclass
class Transformer2DModelOutput(ModelOutput):
    """``sample`` is the velocity, ``b c h w``."""

    sample: Latent


@dataclass
class SanaControlNetOutput(ModelOutput):
    """``controlnet_block_samples`` are what a control branch adds, one a block of its."""

    controlnet_block_samples: tuple[Tokens, ...]


@dataclass
class EncoderOutput(ModelOutput):
    """``latent`` is raw: the caller multiplies by ``scaling_factor``."""

    latent: Latent


@dataclass
class DecoderOutput(ModelOutput):
    """``sample`` are pictures, about [-1, 1] and not clamped."""

    sample: Image


@dataclass
class SchedulerOutput(ModelOutput):
    """``prev_sample`` is the state after a step."""

    prev_sample: Latent


@dataclass
class SCMSchedulerOutput(SchedulerOutput):
    """``pred_original_sample`` is the estimate of the clean latent."""

    pred_original_sample: Latent | None = None
