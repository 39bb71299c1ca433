"""The error tree: every error a user can cause says what broke and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar


class SanakitError(Exception):
    """Base of all errors that are the user's to solve; the command line prints it on one line."""

    exit_code: ClassVar[int] = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  hint: {self.hint}"


class ConfigError(SanakitError):
    """A value that breaks a rule: a size, a count, an unknown option."""


class UnknownArgumentError(ConfigError, TypeError):
    """A keyword that the called function does not have; also a ``TypeError``, as Python's own."""


class WeightsError(SanakitError):
    """A weights file that is damaged, mis-shaped, incomplete or of a refused format."""


class MissingModelError(SanakitError):
    """A model that is neither embedded, nor a folder, nor in the local cache."""

    exit_code = 3


class DataError(SanakitError):
    """A data source that is absent, damaged or not what its name promises."""


class NumericsError(SanakitError):
    """A number that is not finite, with the component and the step where it appeared."""


class Interrupted(SanakitError):
    """The user asked to stop; raised after the step in flight, with nothing half written."""

    exit_code = 130


class OutOfMemory(SanakitError):
    """Memory that does not suffice even for the most frugal way; ``latents`` is what was saved."""

    exit_code = 4

    def __init__(
        self, message: str, *, hint: str | None = None, latents: Path | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.latents = latents


def nearest_names(name: object, known: Iterable[str], *, most: int = 1) -> list[str]:
    """Give the known names that look most like ``name``, the nearest first."""
    return difflib.get_close_matches(str(name), known, n=most)


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Give the hint beside an unknown name: the known one that is nearest, or all of them."""
    known = list(known)
    near = nearest_names(name, known)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
