"""`python -m sanakit`, and the start of the `sanakit` command."""

from __future__ import annotations

import signal
import sys
from types import FrameType

TERMINATED = 128 + signal.SIGTERM


def run() -> None:
    """Run the command line; Ctrl-C while it is still being imported ends as quietly as later."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        # Here, because it takes long enough for Ctrl-C to fall into it.
        from sanakit.cli.main import main  # noqa: PLC0415

        main()
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        # All is over but Python's own end; another Ctrl-C there would change the exit code.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _terminate(number: int, frame: FrameType | None) -> None:
    """End by the way of an error, so that files that are half written are removed."""
    raise SystemExit(TERMINATED)


if __name__ == "__main__":
    run()
