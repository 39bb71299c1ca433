"""Several processes that draw one picture give the picture of one."""

from __future__ import annotations

from pathlib import Path

import stripes_script
from ranks import run_ranks

SCRIPT = Path(stripes_script.__file__)


def test_networks_give_together_what_they_give_alone() -> None:
    # With three there is one that has neighbours on both sides.
    for ended in run_ranks(SCRIPT, 3):
        assert ended.code == 0, ended.err
        found = dict(line.split("\t") for line in ended.out.splitlines())
        assert {*stripes_script.CHANGED, "control", "decoder", "glyph", "glyph's decoder"} <= {
            *found
        }
        for name, off in found.items():
            assert float(off) < 1e-5, name
