"""Int8 products beside real ones: `python -m benchmarks.int8 FOLDER [--diffusers] [--torchao]`.

Times one step with guidance (a prompt of 300 tokens, an empty negative one, read before) of a
transformer's folder, in each dtype that the processor has units for, with real and with int8
weights, all in turns, and says how far each velocity is from the first. AVX2 is played by
ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 before the command.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from sanakit import SanaTransformer2DModel
from sanakit.bench.side import memory_mb
from sanakit.models.flops import transformer_flops
from sanakit.nn.int8 import activation_levels
from sanakit.nn.processor import has_units

TOKENS = 300
Step = Callable[[], Tensor]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of a transformer")
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--diffusers", action="store_true")
    parser.add_argument(
        "--torchao", action="store_true", help="diffusers' linear layers by its dynamic int8"
    )
    parser.add_argument("--dtype", help="only this one of float32 and bfloat16")
    options = parser.parse_args()
    threads, kind = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
    print(f"{kind}, {threads} threads, tokens of {activation_levels()} levels each way")
    dtypes = [torch.float32, *([torch.bfloat16] if has_units(torch.bfloat16) else [])]
    variants: dict[str, Step] = {}
    for dtype in dtypes:
        name = str(dtype).removeprefix("torch.")
        if options.dtype not in (None, name):
            continue
        for method in (None, "w8a8"):
            variants[f"{name} {method or ''}"] = ours(options.folder, dtype, method, options.pixels)
        if options.diffusers:
            variants[f"{name} diffusers"] = theirs(options.folder, dtype, options.pixels)
        if options.torchao:
            variants[f"{name} torchao"] = theirs(
                options.folder, dtype, options.pixels, torchao=True
            )
    with torch.inference_mode():
        measure(variants, options.rounds)
    return 0


def inputs(pixels: int, dtype: torch.dtype, config: object) -> tuple[Tensor, ...]:
    rng = torch.Generator().manual_seed(0)
    side = pixels // 32
    latent = torch.randn(1, config.in_channels, side, side, generator=rng).expand(2, -1, -1, -1)
    text = torch.randn(2, TOKENS, config.caption_channels, generator=rng)
    mask = torch.arange(TOKENS) < torch.tensor([[TOKENS], [1]])
    return latent.to(dtype), text.to(dtype), torch.tensor([500.0, 500.0]), mask


def ours(folder: Path, dtype: torch.dtype, method: str | None, pixels: int) -> Step:
    network = SanaTransformer2DModel.from_pretrained(
        folder, torch_dtype=dtype, quantization_config=method
    ).requires_grad_(False)
    latent, text, time_, mask = inputs(pixels, dtype, network.config)
    with torch.inference_mode():
        prepared = network.prepare_text(text)
    flops = 2 * transformer_flops(network.config, latent.shape[2:], 0)
    print(
        f"{dtype} {method}: {network.get_memory_footprint() / 1e9:.2f} GB, {flops / 1e9:.0f} GFLOP"
        f", peak of the process so far {memory_mb('VmHWM') / 1e3:.2f} GB"
    )
    return lambda: network.velocity(latent, time_, prepared, mask)


def theirs(folder: Path, dtype: torch.dtype, pixels: int, *, torchao: bool = False) -> Step:
    import diffusers

    network = diffusers.SanaTransformer2DModel.from_pretrained(folder, torch_dtype=dtype).eval()
    if torchao:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        quantize_(network, Int8DynamicActivationInt8WeightConfig())
    latent, text, time_, mask = inputs(pixels, dtype, network.config)
    published = mask.to(dtype)
    return lambda: network(latent, text, time_, encoder_attention_mask=published).sample


def measure(variants: dict[str, Step], rounds: int) -> None:
    exact = next(iter(variants.values()))().float()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    errors = {}
    for turn in range(rounds + 1):
        for name, step in variants.items():
            before = time.perf_counter()
            found = step()
            if turn:
                seconds[name].append(time.perf_counter() - before)
            errors[name] = float((found.float() - exact).norm() / exact.norm())
    for name, taken in seconds.items():
        print(
            f"{name:20} median {statistics.median(taken):6.3f} s  least {min(taken):6.3f} s  "
            f"error {errors[name]:.2e}",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
