"""Keywords that public methods share: sizes as text, and refusals that name what exists."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from sanakit.errors import ConfigError

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def refuse_unknown(function: Callable[..., Any], unknown: Mapping[str, object]) -> None:
    """Raise a `ConfigError` for the first of ``unknown``, naming the nearest keyword."""
    if not unknown:
        return
    parameters = inspect.signature(function).parameters.values()
    known = sorted(
        p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    )
    name = next(iter(unknown))
    near = difflib.get_close_matches(name, known, n=1)
    raise ConfigError(
        f"{function.__qualname__} has no keyword {name!r}",
        hint=(f"did you mean {near[0]}? " if near else "") + f"keywords: {', '.join(known)}",
    )


def refuse_pickles(use_safetensors: bool) -> None:
    """Raise a `ConfigError` for ``use_safetensors=False``: there is no other way to read here."""
    if not use_safetensors:
        raise ConfigError("use_safetensors=False would read pickles", hint="leave it out")


def bytes_of(size: int | str) -> int:
    """Read a size: a number of bytes, or a text like ``5GB``.

    Raises:
        ConfigError: for anything else, and for nothing at all.
    """
    found = size
    if isinstance(size, str):
        number, unit = size[:-2].strip(), size[-2:].upper()
        found = int(number) * UNITS[unit] if number.isdecimal() and unit in UNITS else 0
    if not isinstance(found, int) or found < 1:
        raise ConfigError(f"size {size!r} is none", hint="bytes, or text like '500MB' or '5GB'")
    return found
