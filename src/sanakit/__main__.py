"""`python -m sanakit`, and the start of the `sanakit` command."""

from __future__ import annotations

import signal
import sys
from types import FrameType

TERMINATED = 128 + signal.SIGTERM


def run() -> None:
    """Run the command line; Ctrl-C while it is still being imported ends as quietly as later."""
    terminated = Termination()
    signal.signal(signal.SIGTERM, terminated)
    try:
        # Here, because it takes long enough for Ctrl-C to fall into it.
        from sanakit.cli.main import main  # noqa: PLC0415

        main()
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception:
        if terminated.asked:  # libraries that are being imported make other errors of it
            raise SystemExit(TERMINATED) from None
        raise
    finally:
        # All is over but Python's own end; another Ctrl-C there would change the exit code.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


class Termination:
    """Ends by the way of an error, so that files that are half written are removed."""

    asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Take the signal."""
        self.asked = True
        raise SystemExit(TERMINATED)


if __name__ == "__main__":
    run()
