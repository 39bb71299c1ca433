"""Keywords that public methods share: sizes as text, and refusals that name what exists."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from sanakit.errors import ConfigError, UnknownArgumentError, did_you_mean

P = ParamSpec("P")
R = TypeVar("R")
OWNERS = ("self", "cls")

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def refuse_unknown(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function refuse keywords that it lacks, naming the nearest that it has."""
    known = [name for name in inspect.signature(function).parameters if name not in OWNERS]

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in known:
                raise UnknownArgumentError(
                    f"{_called(function, args)} has no argument {name!r}",
                    hint=did_you_mean(name, known),
                )
        return function(*args, **kwargs)

    return checked


def _called(function: Callable[..., Any], args: tuple[Any, ...]) -> str:
    """The name a user knows: a method's with the class that it was called on."""
    if "." not in function.__qualname__ or not args:
        return function.__qualname__
    owner = args[0] if isinstance(args[0], type) else type(args[0])
    method = "" if function.__name__ in ("__init__", "__call__") else f".{function.__name__}"
    return owner.__name__ + method


def refuse_other_readers(*, use_safetensors: bool, low_cpu_mem_usage: bool) -> None:
    """Refuse what published code may ask for and there is no second way of."""
    if not use_safetensors:
        raise ConfigError("use_safetensors=False would read pickles", hint="leave it out")
    if not low_cpu_mem_usage:
        raise ConfigError(
            "low_cpu_mem_usage=False: weights are always read straight into place",
            hint="leave it out",
        )


def refuse_pickles(safe_serialization: bool) -> None:
    """Refuse ``safe_serialization=False`` as a `ConfigError`: pickles are not written either."""
    if not safe_serialization:
        raise ConfigError("safe_serialization=False would write pickles", hint="leave it out")


def bytes_of(size: int | str) -> int:
    """Read a size: a number of bytes, or a text like ``5GB``."""
    found = size
    if isinstance(size, str):
        number, unit = size[:-2].strip(), size[-2:].upper()
        found = int(number) * UNITS[unit] if number.isdecimal() and unit in UNITS else 0
    if not isinstance(found, int) or found < 1:
        raise ConfigError(f"size {size!r} is none", hint="bytes, or text like '500MB' or '5GB'")
    return found
