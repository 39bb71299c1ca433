"""Errors as a user sees them: one message, a hint, an exit code, never a traceback."""

from __future__ import annotations

import sys
from typing import Any

from typer.core import TyperGroup

from sanakit.errors import SanakitError


class FriendlyGroup(TyperGroup):
    """A command of commands: a `SanakitError` becomes ``error: ...`` and its exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was typed."""
        try:
            return super().invoke(ctx)
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
