"""Unknown keywords of public methods: refused, with the nearest that exists."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from sanakit.errors import ConfigError


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
