"""Errors as a user sees them: one message, a hint, an exit code, never a traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from sanakit.errors import SanakitError


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
        # The reader went away (`| head`): nothing is wrong, and nobody is left to tell.
        sys.stderr.close()
        raise SystemExit(0) from None
