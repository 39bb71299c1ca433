"""What the README claims, measured: each module is `python -m benchmarks.NAME`."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
