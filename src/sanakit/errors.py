"""The error tree: every error a user can cause says what broke and what to do next."""

from __future__ import annotations

import difflib
import functools
import inspect
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class SanakitError(Exception):
    """Base of all errors that are the user's to solve; the command line prints it on one line."""

    exit_code: ClassVar[int] = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        message = plain(message)
        super().__init__(message)
        self.message = message
        self.hint = None if hint is None else plain(hint)

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  hint: {self.hint}"


class ConfigError(SanakitError, ValueError):
    """A value that breaks a rule: a size, a count, an unknown option. Also a ``ValueError``."""


class UnknownArgumentError(ConfigError, TypeError):
    """A keyword that the called function does not have; also a ``TypeError``, as Python's own."""


class WeightsError(SanakitError):
    """A weights file that is damaged, mis-shaped, incomplete or of a refused format."""


class MissingModelError(SanakitError, OSError):
    """A model that is neither embedded, nor a folder, nor in the local cache; also an ``OSError``.

    So is what published code catches around ``from_pretrained``.
    """

    exit_code = 3


class MissingVariantError(MissingModelError, ValueError):
    """A variant of the weights that no part has; also a ``ValueError``."""


class DataError(SanakitError):
    """A data source that is absent, damaged or not what its name promises."""


class NumericsError(SanakitError):
    """A number that is not finite, with the component and the step where it appeared."""


class Interrupted(SanakitError):
    """The user asked to stop; raised after the step in flight, with nothing half written."""

    exit_code = 130


class SomeFailed(SanakitError):
    """Some pictures of many could not be drawn; the others are there."""

    exit_code = 6


class LostProcess(SanakitError):
    """Another of the processes that draw a picture together is gone or does not answer."""

    exit_code = 5


class Terminated(Interrupted):
    """The system asked to stop, by SIGTERM; what supervisors of jobs expect to see then."""

    exit_code = 143


class OutOfMemory(SanakitError):
    """Memory that does not suffice even for the most frugal way; ``latents`` is what was saved."""

    exit_code = 4

    def __init__(
        self, message: str, *, hint: str | None = None, latents: Path | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.latents = latents


SHAPING = "\u200c\u200d"
"""Joiners that Persian, the scripts of India and emoji are written with."""
UNPRINTABLE = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of controls, formats such as a change of direction, lone surrogates, ends of
lines and paragraphs."""


def plain(text: object) -> str:
    """Give a text as one line that cannot command a terminal.

    White space becomes spaces, other controls and lone surrogates are escaped. For all that comes
    from files, models, pictures and prompts.
    """
    said = str(text)
    if said.isprintable():
        return said
    return "".join(map(_plain_letter, said))


def _plain_letter(letter: str) -> str:
    if letter in SHAPING or unicodedata.category(letter) not in UNPRINTABLE:
        return letter
    return " " if letter.isspace() else letter.encode("unicode_escape").decode("ascii")


def check_unicode(text: str, name: str) -> None:
    """Refuse a text that no encoding of Unicode has: bytes of a shell that were no UTF-8, say."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{name} holds {text[error.start]!r}, which is no whole character",
            hint="text must be UTF-8: check the encoding of the terminal or the file",
        ) from error


def nearest_names(name: object, known: Iterable[str], *, most: int = 1) -> list[str]:
    """Give the known names that look most like ``name``, the nearest first.

    The dashes that options begin with are no likeness.
    """
    bare = {one.lstrip("-"): one for one in known}
    return [bare[one] for one in difflib.get_close_matches(str(name).lstrip("-"), bare, n=most)]


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Give the hint beside an unknown name: the known one that is nearest, or all of them."""
    known = list(known)
    near = nearest_names(name, known)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


def refuse_unknown(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function refuse keywords that it lacks, naming the nearest that it has."""
    known = [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]

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
