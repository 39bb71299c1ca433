"""Seconds and peak memory of decoding with the published DC-AE's shape, random weights.

`python -m benchmarks.decoding --size 1024 --ways whole,512,128`: each way in a process of its own,
the peak of resident memory while decoding less what was resident before, beside the estimate that
the choice of a way rests on. A number is the height of exact stripes, WxH of exact tiles, `blended`
overlapping ones, `int8` the whole by `w8a8`, `diffusers` its AutoencoderDC.

`--versus diffusers` runs both, and `w8a8` where convolutions in int8 pay, in one process on equal
weights and latents, in turns, and compares with the floor: the products of the plain convolutions
at the rate of large ones, measured between. `--encode` encodes pictures instead.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import ROOT
from sanakit.bench.record import append, facts
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.config import AUTOENCODERS, config_to_dict
from sanakit.models.tiling import Tiling
from sanakit.nn.int8_convolution import pays
from sanakit.pipeline import decoder
from sanakit.pipeline.networks import AutoencoderDC
from sanakit.quant.method import Int8
from sanakit.quant.quantize import quantize
from sanakit.train.mfu import counted

RESULTS = ROOT / "benchmarks" / "results" / "decoding.jsonl"


def resident(key: str) -> int:
    """``VmRSS``, or ``VmHWM``, its highest value since :func:`forget_peak`; bytes, Linux only."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"error: /proc/self/status has no {key}")


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def built(settings: argparse.Namespace) -> Autoencoder:
    """Random weights of a published shape."""
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, settings.dtype))
    autoencoder = Autoencoder(AUTOENCODERS[settings.preset]).eval().requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    return autoencoder


def rounded(autoencoder: Autoencoder) -> Autoencoder:
    """The same in int8."""
    keep, dtype = AutoencoderDC.always_keep, next(autoencoder.parameters()).dtype
    quantize(autoencoder, Int8(), always_keep=keep, dtype=dtype)
    return autoencoder


def peer_of(autoencoder: Autoencoder) -> Any:
    """The same weights in diffusers' class."""
    from diffusers import AutoencoderDC

    peer = (
        AutoencoderDC.from_config(config_to_dict(autoencoder.config)).eval().requires_grad_(False)
    )
    weight = next(autoencoder.parameters())
    peer.to(weight.dtype).load_state_dict(autoencoder.state_dict())
    return peer


def gemm_rate() -> float:
    """Floating-point operations a second of large fp32 products; the best of some."""
    a, b = torch.randn(2048, 1024), torch.randn(1024, 1024)
    seconds = []
    for _ in range(8):
        started = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - started)
    return 2 * len(a) * a.shape[1] * b.shape[1] / min(seconds)


def versus(settings: argparse.Namespace) -> dict[str, Any]:
    """Seconds of both, in turns; what one round says is said of both."""
    autoencoder = built(settings)
    peer = peer_of(autoencoder)
    side, factor = settings.size, autoencoder.config.spatial_factor
    shape = (1, autoencoder.config.latent_channels, side // factor, side // factor)
    x = torch.randn(1, 3, side, side) if settings.encode else torch.randn(shape)
    x = x.to(next(autoencoder.parameters()).dtype)
    run = "encode" if settings.encode else "decode"
    ways = {"sanakit": autoencoder, "diffusers": peer}
    if pays("cpu"):
        ways["int8"] = rounded(copy.deepcopy(autoencoder))
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    rates, results = [], {}
    with torch.no_grad():
        config, shape = autoencoder.config, x.shape
        flops = counted(lambda: getattr(Autoencoder(config), run)(torch.zeros(shape)))
        for way in ways.values():
            getattr(way, run)(x[..., : 8 * side // 64, : 8 * side // 64])
        for _ in range(settings.rounds):
            rates.append(gemm_rate())
            for name, way in ways.items():
                started = time.perf_counter()
                (results[name],) = getattr(way, run)(x, return_dict=False)
                seconds[name].append(time.perf_counter() - started)
    middle = {name: statistics.median(each) for name, each in seconds.items()}
    ours, theirs = middle["sanakit"], middle["diffusers"]
    apart = (results["sanakit"] - results["diffusers"]).abs().max() / results["diffusers"].std()
    return {
        "run": run,
        "isa": torch.backends.cpu.get_cpu_capability(),
        "sanakit": [round(each, 2) for each in seconds["sanakit"]],
        "diffusers": [round(each, 2) for each in seconds["diffusers"]],
        "times_faster": round(theirs / ours, 2),
        "gemm_gflops": round(max(rates) / 1e9),
        "plain_floor": round(flops / max(rates), 2),
        "largest_difference": float(f"{apart.item():.1e}"),
        **({"int8": of_int8(seconds, results)} if "int8" in ways else {}),
    }


def of_int8(seconds: dict[str, list[float]], results: dict[str, Any]) -> dict[str, Any]:
    """Seconds of every turn, times as fast as both others, error relative to the exact result."""
    middle = {name: statistics.median(each) for name, each in seconds.items()}
    exact = results["sanakit"]
    return {
        "seconds": [round(each, 2) for each in seconds["int8"]],
        **{name: round(each / middle["int8"], 2) for name, each in middle.items()},
        "error": round(((results["int8"] - exact).norm() / exact.norm()).item(), 4),
    }


def measure(settings: argparse.Namespace) -> dict[str, Any]:
    """Decode in this process, in one way."""
    autoencoder = built(settings)
    if settings.ways == "int8":
        rounded(autoencoder)
    if settings.encode or settings.ways == "diffusers":
        return measure_whole(settings, autoencoder)
    dtype = next(autoencoder.parameters()).dtype
    autoencoder.encoder = torch.nn.Identity()
    factor = autoencoder.config.spatial_factor
    side = settings.size // factor
    latent = torch.randn(1, autoencoder.config.latent_channels, side, side)
    if settings.ways in ("whole", "int8"):
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
        "way": "int8" if settings.ways == "int8" else str(way),
        "seconds": round(seconds, 2),
        "peak_mb": round(peak / 2**20),
        "estimate_mb": round(estimate / 2**20),
        "estimate_over_peak": round(estimate / peak, 2),
        "with_overhead_over_peak": round(decoder.with_overhead(estimate) / peak, 2),
    }


def measure_whole(settings: argparse.Namespace, autoencoder: Autoencoder) -> dict[str, Any]:
    """Encode or decode as the class does it by default, ours or diffusers'."""
    model: Any = peer_of(autoencoder) if settings.ways == "diffusers" else autoencoder
    factor, channels = autoencoder.config.spatial_factor, autoencoder.config.latent_channels
    del autoencoder
    unused = "decoder" if settings.encode else "encoder"
    setattr(model, unused, torch.nn.Identity())
    side = settings.size // (1 if settings.encode else factor)
    x = torch.randn(1, 3 if settings.encode else channels, side, side)
    x = x.to(next(model.parameters()).dtype)
    run = model.encode if settings.encode else model.decode
    with torch.no_grad():
        run(x[..., : side // 4, : side // 4])
        gc.collect()
        before = resident("VmRSS")
        forget_peak()
        started = time.perf_counter()
        run(x)
        seconds = time.perf_counter() - started
    peak = resident("VmHWM") - before
    return {"way": settings.ways, "seconds": round(seconds, 2), "peak_mb": round(peak / 2**20)}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoding", description=__doc__)
    parser.add_argument("--preset", default="dc-ae-f32c32-sana-1.0")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--ways", default="whole,256,64,64x256,blended")
    parser.add_argument("--versus", choices=("diffusers",))
    parser.add_argument("--encode", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", action="store_true", help="measure in this process; one way")
    return parser.parse_args()


def main() -> None:
    """Measure every way in a fresh process, print a table, append one line of JSON."""
    settings = parse()
    if settings.one:
        print(json.dumps(measure(settings)))
        return
    rows = []
    if settings.versus:
        rows.append(versus(settings))
        settings.ways = ",".join(["whole", *(["int8"] if "int8" in rows[0] else []), "diffusers"])
        print("  ".join(f"{key} {value}" for key, value in rows[0].items()), flush=True)
    for way in settings.ways.split(","):
        command = [sys.executable, "-m", "benchmarks.decoding", "--one", "--ways", way]
        command += ["--size", str(settings.size), "--dtype", settings.dtype]
        command += ["--preset", settings.preset, *(["--encode"] if settings.encode else [])]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        row = json.loads(done.stdout)
        rows.append(row)
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    record = {
        **facts(),
        "settings": vars(settings),
        "ways": rows,
    }
    append(RESULTS, record)
    print(f"appended to {RESULTS.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
