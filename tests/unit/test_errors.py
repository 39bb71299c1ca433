"""Errors are caught by the names that code around published pipelines catches."""

from __future__ import annotations

import pickle

import pytest

from sanakit import SanaPipeline
from sanakit.errors import (
    ConfigError,
    MissingModelError,
    SanakitError,
    UnknownArgumentError,
    nearest_names,
)


@pytest.mark.parametrize(
    ("kind", "base"),
    [(MissingModelError, OSError), (ConfigError, ValueError), (UnknownArgumentError, TypeError)],
)
def test_an_error_is_also_the_one_that_published_code_catches(
    kind: type[SanakitError], base: type[Exception]
) -> None:
    error = kind("it broke", hint="mend it")
    assert isinstance(error, base)
    assert str(error) == "it broke\n  hint: mend it"
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (kind, str(error))


def test_a_model_that_is_not_there_is_an_os_error() -> None:
    with pytest.raises(OSError, match="no such folder"):
        SanaPipeline.from_pretrained("./nowhere")


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [
        ("--overwrite", []),
        ("--guidence", ["--guidance"]),
        ("--seeds", ["--seed"]),
        ("--see", ["--seed"]),
    ],
)
def test_the_dashes_of_options_are_no_likeness(typed: str, nearest: list[str]) -> None:
    known = ("--solver", "--guidance", "--seed", "--no-metadata", "--width", "-n")
    assert nearest_names(typed, known) == nearest
