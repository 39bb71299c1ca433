"""The one place from which the command prints: no text ends it, and none commands the terminal."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from typing import Any, TextIO

from sanakit.errors import DataError, plain


def processes() -> tuple[int, int]:
    """Number of this process, and how many torchrun started: 0 and 1 where it started none."""
    number, count = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    known = number.isdecimal() and count.isdecimal() and int(number) < int(count)
    return (int(number), int(count)) if known else (0, 1)


def speaks() -> bool:
    """Whether this process prints and writes, of those that torchrun started."""
    return processes()[0] == 0


def say(*lines: object, err: bool = False) -> None:
    """Print lines to standard output or standard error; what a line holds cannot make a second.

    Of several processes the first one prints.

    Raises:
        DataError: standard output refuses. BrokenPipeError: its reader went away.
    """
    if speaks():
        _print(*lines, err=err)


def say_error(message: str) -> None:
    """Print why a command ends, on every process: one may fail alone."""
    number, _ = processes()
    _print(f"error: {message}" if number == 0 else f"error: process {number}: {message}", err=True)


def _print(*lines: object, err: bool) -> None:
    stream = sys.stderr if err else sys.stdout
    try:
        print(*(plain(line) for line in lines), sep="\n", file=stream, flush=True)
    except OSError as error:
        _abandon(stream)
        if err:  # there is nobody to tell
            return
        if isinstance(error, BrokenPipeError):
            raise
        raise refused(error) from error


def say_bytes(data: bytes) -> None:
    """Write to standard output what is no text; of several processes the first one does.

    Raises:
        DataError: standard output refuses. BrokenPipeError: its reader went away.
    """
    if not speaks():
        return
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        _abandon(sys.stdout)
        raise
    except OSError as error:
        _abandon(sys.stdout)
        raise refused(error) from error


def refused(error: OSError) -> DataError:
    """The error of a standard output that takes nothing."""
    return DataError(
        f"standard output: cannot be written ({error.strerror or error})",
        hint="check the free space of where it leads",
    )


def open_streams() -> None:
    """Make the standard streams safe to print to, also for libraries.

    A stream that is closed leads nowhere, and its number is taken, so that no file gets it. A
    letter that a stream cannot encode is escaped.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def tell_warnings() -> None:
    """Say warnings and log records of libraries as the command says its own notes.

    The package, unlike the command, leaves logging alone.
    """
    # What torchao and bitsandbytes say of themselves: builds that they lack, and nothing here uses.
    for name in ("bitsandbytes", "torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Of configs and tokenizers of models: either refused here, or of no meaning here.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger().addHandler(_Notes(logging.WARNING))
    warnings.showwarning = _say_warning


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(f"note: {record.getMessage()}", err=True)


def _say_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    say(f"note: {message}", err=True)


def _abandon(stream: TextIO) -> None:
    """Let a stream that refuses lead nowhere: what is left in it would be an error at the end."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except OSError:
        return
