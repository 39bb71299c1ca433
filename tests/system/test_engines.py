"""The tests of Ray, in a process of their own.

Ray ends the process that started it, at once and without a word, when its own processes end in the
wrong order while it shuts down on a busy machine. That may end its tests, and not all others.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).with_name("engines_on_ray.py")
ROOT = Path(__file__).parents[2]


def test_what_is_said_of_engines_holds() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", str(TESTS)],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    wanted = len(re.findall("^def test_", TESTS.read_text("utf-8"), re.MULTILINE))
    outcomes = re.findall(r"::test_\w+ (PASSED|SKIPPED)", done.stdout)
    assert len(outcomes) == wanted, done.stdout[-3000:]
    assert "FAILED" not in done.stdout
    assert done.returncode in (0, 1), done.stderr[-1000:]
