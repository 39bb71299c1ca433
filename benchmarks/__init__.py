"""What the README claims, measured: each module is `python -m benchmarks.NAME`."""
