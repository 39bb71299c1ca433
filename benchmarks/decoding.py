"""Seconds and peak memory of decoding with the published DC-AE's shape, random weights.

`python -m benchmarks.decoding --size 1024 --ways whole,512,128`: each way in a process of its own,
the peak of resident memory while decoding less what was resident before, beside the estimate that
the choice of a way rests on. A number is the height of exact stripes, WxH of exact tiles, `blended`
overlapping ones.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.generate import ROOT, commit, cores, versions

RESULTS = ROOT / "benchmarks" / "results" / "decoding.jsonl"


def resident(key: str) -> int:
    """``VmRSS``, or ``VmHWM``, its highest value since :func:`forget_peak`; bytes, Linux only."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"error: /proc/self/status has no {key}")


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def measure(settings: argparse.Namespace) -> dict[str, Any]:
    """Decode in this process, in one way."""
    import torch

    from sanakit.models.autoencoder import Autoencoder
    from sanakit.models.config import AUTOENCODERS
    from sanakit.models.tiling import Tiling
    from sanakit.pipeline import decoder

    torch.manual_seed(0)
    dtype = getattr(torch, settings.dtype)
    torch.set_default_dtype(dtype)
    autoencoder = Autoencoder(AUTOENCODERS[settings.preset]).eval().requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    autoencoder.encoder = torch.nn.Identity()
    factor = autoencoder.config.spatial_factor
    side = settings.size // factor
    latent = torch.randn(1, autoencoder.config.latent_channels, side, side)
    if settings.ways == "whole":
        way = decoder.Way()
    elif settings.ways == "blended":
        way = decoder.Way(tiling=Tiling(384, 384, 256, 256, exact=False))
    else:
        high, _, wide = settings.ways.partition("x")
        tiling = Tiling.squares(int(high), int(wide)) if wide else Tiling.rows(int(high))
        way = decoder.Way(tiling=tiling)
    # A first small picture: what libraries keep from their first use is not the picture's.
    decoder.decode_pixels(autoencoder, latent[:, :, :4, :4])
    decoder.ways_to_decode = lambda *_: [(way, 0)]
    before = resident("VmRSS")
    forget_peak()
    started = time.perf_counter()
    pixels = decoder.decode_pixels(autoencoder, latent)
    seconds = time.perf_counter() - started
    peak = resident("VmHWM") - before
    raw = latent.to(dtype)
    estimate = way.peak_bytes(autoencoder, raw) + pixels.nbytes
    return {
        "way": str(way),
        "seconds": round(seconds, 2),
        "peak_mb": round(peak / 2**20),
        "estimate_mb": round(estimate / 2**20),
        "estimate_over_peak": round(estimate / peak, 2),
        "with_overhead_over_peak": round(decoder.with_overhead(estimate) / peak, 2),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoding", description=__doc__)
    parser.add_argument("--preset", default="dc-ae-f32c32-sana-1.0")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--ways", default="whole,256,64,64x256,blended")
    parser.add_argument("--one", action="store_true", help="measure in this process; one way")
    return parser.parse_args()


def main() -> None:
    """Measure every way in a fresh process, print a table, append one line of JSON."""
    settings = parse()
    if settings.one:
        print(json.dumps(measure(settings)))
        return
    rows = []
    for way in settings.ways.split(","):
        command = [sys.executable, "-m", "benchmarks.decoding", "--one", "--ways", way]
        command += ["--size", str(settings.size), "--dtype", settings.dtype]
        command += ["--preset", settings.preset]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        row = json.loads(done.stdout)
        rows.append(row)
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    record = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": versions(),
        "cores": cores(),
        "settings": vars(settings),
        "ways": rows,
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    print(f"appended to {RESULTS.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
