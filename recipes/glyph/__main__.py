"""`python -m recipes.glyph VERB` does one stage; `python -m recipes.glyph PRESET` all of them."""

from __future__ import annotations

import logging
import sys

from recipes.glyph.commands.app import VERBS, app


def run() -> None:
    """Run a verb, or the preset of that name."""
    # What torchao says of itself when transformers finds it: builds that nothing here uses.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if len(sys.argv) < 2 or sys.argv[1] in (*VERBS, "-h", "--help"):
        app()
        return
    from recipes.glyph.speedrun import main  # noqa: PLC0415

    sys.exit(main())


if __name__ == "__main__":
    run()
