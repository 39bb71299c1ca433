"""Where files are kept that can be made again at any time; nobody loses more than time with them.

``SANAKIT_CACHE`` names the folder, or is ``off`` for no such files. Without it the folder is
``sanakit`` in ``XDG_CACHE_HOME``, in ``~/.cache``, or on Windows in ``LOCALAPPDATA``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "SANAKIT_CACHE"
OFF = "off"


def cache_folder(environment: Mapping[str, str] | None = None) -> Path | None:
    """Say where to keep files, without making the folder; None: nowhere.

    ``environment`` is the process's own by default. A relative ``XDG_CACHE_HOME`` is passed over,
    as its specification asks; a folder that is really called off is ``./off``.
    """
    found = os.environ if environment is None else environment
    chosen = found.get(VARIABLE, "")
    if chosen.strip().lower() == OFF:
        return None
    try:
        if chosen:
            return Path(chosen).expanduser().absolute()
        home = found.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", "")
        return (Path(home) if Path(home).is_absolute() else Path.home() / ".cache") / "sanakit"
    except RuntimeError:  # a user without a home
        return None
