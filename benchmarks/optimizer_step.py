"""Step time and bytes of state of every optimizer on the weights of transformer blocks.

``python -m benchmarks.optimizer_step --preset sana-0.6b --layers 2`` interleaves torch's AdamW
(foreach and fused) with ours, and bitsandbytes' where it is installed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from sanakit.models.config import TRANSFORMERS
from sanakit.models.transformer import LinearDiT
from sanakit.train.optim.build import build_optimizer, state_bytes


def weights(preset: str, layers: int) -> list[nn.Parameter]:
    """The parameters of some blocks, with gradients."""
    config = replace(TRANSFORMERS[preset], num_layers=layers)
    with torch.device("meta"):
        blocks = LinearDiT(config).transformer_blocks
    generator = torch.Generator().manual_seed(0)
    parameters = []
    for parameter in blocks.parameters():
        made = nn.Parameter(0.02 * torch.randn(parameter.shape, generator=generator))
        made.grad = 0.01 * torch.randn(parameter.shape, generator=generator)
        parameters.append(made)
    return parameters


def builders(bitsandbytes: bool) -> dict[str, Callable[[list[nn.Parameter]], Optimizer]]:
    def ours(name: str) -> Callable[[list[nn.Parameter]], Optimizer]:
        return lambda p: build_optimizer(name, [(str(i), w) for i, w in enumerate(p)], lr=1e-4)

    found: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
        "torch AdamW foreach": lambda p: AdamW(p, lr=1e-4, foreach=True),
        "adamw (torch fused)": ours("adamw"),
        "came": ours("came"),
        "came8bit": ours("came8bit"),
        "adamw8bit": ours("adamw8bit"),
    }
    if bitsandbytes:
        from bitsandbytes.optim import AdamW8bit

        found["bitsandbytes AdamW8bit"] = lambda p: AdamW8bit(p, lr=1e-4)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", default="sana-0.6b")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bitsandbytes", action="store_true")
    args = parser.parse_args()
    parameters = weights(args.preset, args.layers)
    for parameter in parameters:
        parameter.data, grad = parameter.data.to(args.device), parameter.grad.to(args.device)
        parameter.grad = grad
    count = sum(p.numel() for p in parameters)
    print(f"{args.preset}, {args.layers} blocks, {count / 1e6:.1f} M parameters, {args.device}")
    optimizers = {name: make(parameters) for name, make in builders(args.bitsandbytes).items()}
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    for repeat in range(args.repeats + 1):
        for name, optimizer in optimizers.items():
            _wait(args.device)
            start = time.perf_counter()
            optimizer.step()
            _wait(args.device)
            if repeat:  # the first step makes the states
                times[name].append(time.perf_counter() - start)
    base = median(times["torch AdamW foreach"])
    for name, optimizer in optimizers.items():
        seconds = median(times[name])
        print(
            f"{name:24} {1e3 * seconds:8.1f} ms  x{seconds / base:.2f}  "
            f"{state_bytes(optimizer) / count:.3f} bytes of state a parameter"
        )


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
