"""Several processes that draw one picture give the picture of one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import failing_rank_script
import stripes_script
from command_line import sanakit
from ranks import run_ranks
from sanakit import __main__
from sanakit.pipeline.png import read_settings

NETWORKS, FAILING = Path(stripes_script.__file__), Path(failing_rank_script.__file__)
COMMAND = Path(__main__.__file__)
DRAW = ("generate", "a red apple", "--steps", "3", "-o")


def test_networks_give_together_what_they_give_alone() -> None:
    # With three there is one that has neighbours on both sides.
    for ended in run_ranks(NETWORKS, 3):
        assert ended.code == 0, ended.err
        found = dict(line.split("\t") for line in ended.out.splitlines())
        assert {"control of original", "decoder", "glyph", "noise"} <= {*found}
        for name, off in found.items():
            assert float(off) < 1e-5, name


def test_the_command_draws_one_picture_on_several_processes(tmp_path: Path) -> None:
    alone, together = tmp_path / "alone.png", tmp_path / "together.png"
    sanakit(*DRAW, alone)
    first, second = run_ranks(COMMAND, 2, *DRAW, str(together))
    assert (first.code, second.code) == (0, 0), first.err + second.err
    # One of them writes and prints.
    assert first.out == f"{together}  seed 0\n"
    assert second.out + second.err == ""
    one, two = (np.asarray(Image.open(path)).astype(int) for path in (alone, together))
    assert abs(one - two).max() <= 1, "a rounding may fall to the other side"
    assert read_settings(together) == read_settings(alone) | {"processes": 2}
    _, told = sanakit("again", together)
    assert "drawn by 2 processes" in told


@pytest.mark.parametrize("way", ["gone", "stuck", "fails"])
def test_where_one_process_fails_all_end_with_a_line_and_nothing_is_written(
    way: str, tmp_path: Path
) -> None:
    first, second = run_ranks(FAILING, 2, way, *DRAW, str(tmp_path / "out.png"), timeout=120)
    error, hint = first.err.splitlines()[-2:]
    assert first.code == 5
    assert error.startswith("error: another process"), first.err
    assert hint.startswith("hint: ")
    assert "Traceback" not in first.err
    assert not any(tmp_path.iterdir())
    if way == "fails":
        assert second.err.splitlines()[-1] == "error: process 1: a number of its own"
        assert second.code == 2
