"""Requests on a GPU: ours plain, with kernels and compiled, beside diffusers plain and compiled.

Random weights of the published 0.6B configuration, the same for all; text is given as embeddings.
Each way has a process of its own. Its first request is told apart, for it warms up and compiles;
of the next four the fastest counts. A picture's distance is that to the first way's, in dB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import ROOT
from benchmarks.pipelines import TOKENS, write_weights
from sanakit.bench.record import append, facts

WAYS = {  # library, whether kernels may run, how its blocks are compiled
    "plain": ("sanakit", False, None),
    "kernels": ("sanakit", True, None),
    "compiled": ("sanakit", True, {}),
    "compiled, CUDA graphs": ("sanakit", True, {"mode": "reduce-overhead"}),
    "diffusers": ("diffusers", False, None),
    "diffusers, compiled": ("diffusers", False, {}),
}
REQUESTS = 4


def one(name: str, settings: argparse.Namespace) -> dict[str, Any]:
    """Load, draw, and give the seconds of each request."""
    library, kernels, compiled = WAYS[name]
    os.environ["SANAKIT_KERNELS"] = str(int(kernels))
    module = __import__(library)
    dtype = torch.bfloat16 if settings.device == "cuda" else torch.float32
    pipe = module.SanaPipeline.from_pretrained(
        settings.folder / "base", text_encoder=None, tokenizer=None, torch_dtype=dtype
    ).to(settings.device)
    pipe.set_progress_bar_config(disable=True)
    if compiled is not None:
        # It lacks the name of its own blocks.
        type(pipe.transformer)._repeated_blocks = ["SanaTransformerBlock"]
        pipe.transformer.compile_repeated_blocks(**compiled)
    random = torch.Generator().manual_seed(1)
    embeds = torch.randn(2, 1, TOKENS, 2304, generator=random).to(settings.device, dtype)
    mask = torch.ones(1, TOKENS, dtype=torch.long, device=settings.device)
    seconds = []
    for _ in range(1 + REQUESTS):
        started = time.perf_counter()
        picture = pipe(
            prompt=None,
            negative_prompt=None,
            prompt_embeds=embeds[0],
            negative_prompt_embeds=embeds[1],
            prompt_attention_mask=mask,
            negative_prompt_attention_mask=mask,
            num_inference_steps=settings.steps,
            height=settings.size,
            width=settings.size,
            use_resolution_binning=False,
            generator=torch.Generator().manual_seed(7),
            output_type="np",
        ).images[0]
        seconds.append(time.perf_counter() - started)  # a picture on the CPU is a finished one
    np.save(settings.folder / f"{name}.npy", picture)
    cuda = settings.device == "cuda"
    failed = sorted(getattr(sys.modules.get("sanakit.nn.gpu"), "failed", ()))
    return {
        "way": name,
        "first": seconds[0],
        "fastest": min(seconds[1:]),
        "seconds": seconds,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if cuda else None,
        "failed_kernels": failed,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
    }


def decibels(folder: Path, name: str) -> float | None:
    """PSNR of a way's picture against the first way's; None where they are equal."""
    plain, own = (np.load(folder / f"{way}.npy") for way in (next(iter(WAYS)), name))
    error = float(np.square(plain - own).mean())
    return 10 * float(np.log10(1 / error)) if error else None


def arguments() -> argparse.Namespace:
    """What was typed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--weights", default="published", choices=("published", "tiny"))
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--limit", type=int, default=150, help="Seconds that a way may take.")
    parser.add_argument("--folder", type=Path, required=True, help="Of weights, made if missing.")
    parser.add_argument("--results", type=Path, required=True, help="JSON lines; read first.")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure every way that has no result yet."""
    settings = arguments()
    if settings.way is not None:
        print(json.dumps(one(settings.way, settings)))
        return
    if not (settings.folder / "base" / "model_index.json").is_file():
        write_weights(settings.folder, settings.weights, kinds=("base",))
    done = settings.results.read_text().splitlines() if settings.results.is_file() else []
    known = {json.loads(line)["way"] for line in done}
    shared = facts()
    for way in WAYS:
        if way in known:
            continue
        command = [sys.executable, "-m", "benchmarks.gpu_requests", *sys.argv[1:], "--way", way]
        try:
            ran = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=settings.limit
            )
        except subprocess.TimeoutExpired:
            print(f"{way}: no result within {settings.limit} s", flush=True)
            continue
        if ran.returncode:
            print(f"{way}: no result\n{ran.stderr[-2000:]}", flush=True)
            continue
        found = json.loads(ran.stdout.splitlines()[-1])
        found["psnr_to_plain"] = decibels(settings.folder, way)
        found |= {"size": settings.size, "steps": settings.steps, **shared}
        append(settings.results, found)
        print(
            f"{way}: {found['fastest']:.3f} s, the first {found['first']:.1f} s, "
            f"{found['peak_gb'] or 0:.1f} GB, PSNR {found['psnr_to_plain'] or float('inf'):.1f} dB",
            flush=True,
        )


if __name__ == "__main__":
    main()
