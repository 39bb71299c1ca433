"""A build that is killed, at any point, is finished by the next run as if nothing had happened."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tiny_set import picture

TESTS = Path(__file__).parents[1] / "fixtures"
EVERY = "13"  # point; all of them: python tests/fixtures/kill_points.py PICTURES WORK


def test_a_build_that_dies_before_a_change_of_the_disk_is_finished_by_the_next(
    tmp_path: Path,
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number, (height, width) in enumerate([(40, 40), (64, 64), (70, 70), (40, 80)]):
        (pictures / f"red_thing_{number}.png").write_bytes(picture(height, width, seed=number))
    (pictures / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    done = subprocess.run(
        [sys.executable, TESTS / "kill_points.py", pictures, tmp_path / "work", EVERY],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=TESTS,
    )
    assert done.stdout, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["wrong"] == []
    # Every unit stages, renames and marks; fewer would mean that the hook sees nothing.
    assert result["points"]["nothing"] > 40
    assert result["points"]["other settings"] > 40
