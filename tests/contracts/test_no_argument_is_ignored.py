"""Every argument of a published call goes into the call that is drawn, or its pipeline reads it."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest

import sanakit
from sanakit.pipeline.published.base import PublishedPipeline
from sanakit.pipeline.request import Call

PIPELINES = [
    each
    for name in sanakit.__all__
    if isinstance(each := getattr(sanakit, name), type) and issubclass(each, PublishedPipeline)
]


def ignored(own: Callable[..., Any]) -> set[str]:
    """Parameters that are no field of a call and that the function never reads."""
    read: set[object] = set()
    for step in dis.get_instructions(own):
        if step.opname.startswith("LOAD_"):
            read |= set(step.argval) if isinstance(step.argval, tuple) else {step.argval}
    shared = {each.name for each in fields(Call)}
    return set(inspect.signature(own).parameters) - shared - read


def test_what_is_ignored_is_found() -> None:
    def own(prompt: object, height: int, wish: object, used: int) -> object:
        return [used for _ in range(3)]

    assert ignored(own) == {"wish"}


@pytest.mark.parametrize("pipeline", PIPELINES, ids=lambda each: each.__name__)
def test_no_argument_of_a_call_is_ignored(pipeline: type[PublishedPipeline]) -> None:
    assert ignored(inspect.unwrap(pipeline.__call__)) <= {"self"}
