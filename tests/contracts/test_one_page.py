"""What has to be read to know how a picture is drawn: the files that `generate` runs through."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# Up to the first step of the solver, beside the networks, the layers, the flow, and the command
# line, whose verbs are all declared at once.
READ = {
    "sanakit": {"errors", "files", "shapes", "untrusted"},
    "sanakit.pipeline": {
        "aspect_ratios",
        "components",
        "decoder",
        "language_models",
        "load_arguments",
        "networks",
        "numerics",
        "picture_requests",
        "pipeline",
        "pixels",
        "placement",
        "prompts",
        "request",
        "sampler",
        "scheduler_settings",
        "schedulers",
    },
    "sanakit.quant": {"method", "quantize"},
    "sanakit.weights": {
        "catalog",
        "dtypes",
        "int8_rows",
        "layout",
        "lockfile",
        "resolve",
        "store",
    },
}
ELSEWHERE = ("sanakit.cli", "sanakit.models", "sanakit.nn", "sanakit.flow")
FIRST_STEP = """
import sys
from sanakit.cli.main import main
from sanakit.pipeline import pipeline

def first_step(*arguments, **keywords):
    print(*(name for name in sys.modules if name.startswith("sanakit.")))
    raise SystemExit

pipeline.integrate = first_step
main()
"""


def test_a_picture_is_drawn_by_these_files_and_no_others(tmp_path: Path) -> None:
    command = ["generate", "a red apple", "-o", str(tmp_path / "out.png"), "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", FIRST_STEP, *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    read = {name for name in done.stdout.split() if not name.startswith(ELSEWHERE)}
    listed = {f"{package}.{name}" for package, names in READ.items() for name in names}
    assert read - {*READ} == listed
