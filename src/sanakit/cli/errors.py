"""Errors as a user sees them: one message, a hint, an exit code, never a traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from typer.core import TyperGroup

from sanakit.errors import SanakitError


class FriendlyGroup(TyperGroup):
    """A command of commands whose errors are told as :func:`friendly_errors` tells them."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was typed."""
        with friendly_errors():
            return super().invoke(ctx)


@contextmanager
def friendly_errors() -> Iterator[None]:
    """Turn a `SanakitError` into ``error: ...`` on standard error and its exit code."""
    try:
        yield
    except SanakitError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        # The reader went away (`| head`): nothing is wrong, and a message would not be read.
        sys.stderr.close()
        raise SystemExit(0) from None
