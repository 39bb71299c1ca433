"""A step of our training loop beside a plain loop around diffusers' model and torch's AdamW.

``python -m benchmarks.train_step`` interleaves both in one process (same weights, same batch),
prints the middle of each and of the ratios of neighbours, and takes the peak memory of each in a
process of its own. ``--without NAME`` undoes one of our measures to show what it brings.
"""

from __future__ import annotations

import argparse
import gc
import inspect
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.generate import ROOT, commit, cores, versions
from sanakit.flow.path import flow_matching_loss, interpolate
from sanakit.models import transformer as transformer_module
from sanakit.models.config import TRANSFORMERS, TransformerConfig, config_to_dict
from sanakit.models.transformer import LinearDiT
from sanakit.nn import embed, linear_attention, mix_ffn
from sanakit.train import loop
from sanakit.train.ranks import Ranks
from sanakit.train.recipe import Recipe
from sanakit.train.settings import LoopConfig
from sanakit.train.shares import Share
from sanakit.train.timers import Timers

RESULTS = ROOT / "benchmarks" / "results" / "train_step.jsonl"
Step = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained, on what, how."""

    preset: str = "sana-0.6b"
    layers: int = 3
    batch: int = 4
    side: int = 32
    tokens: int = 300
    """Places for text, as published models have them; the plain loop computes all of them."""
    shortest: int = 300
    """Real tokens of the batch's captions: evenly spread from here to ``longest``."""
    longest: int = 300
    dtype: str = "bfloat16"
    threads: int = 1
    checkpointing: bool = False
    compiled: bool = False
    device: str = "cpu"
    without: str = ""

    @property
    def config(self) -> TransformerConfig:
        """The preset with fewer blocks."""
        return replace(TRANSFORMERS[self.preset], num_layers=self.layers)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One batch, padded to ``Case.tokens``."""

    x0: Tensor
    noise: Tensor
    sigma: Tensor
    text: Tensor
    mask: Tensor


def batch_of(case: Case) -> Batch:
    rng = torch.Generator().manual_seed(1)
    config = case.config
    shape = case.batch, config.in_channels, case.side, case.side
    lengths = torch.linspace(case.shortest, case.longest, case.batch).long()
    return Batch(
        x0=torch.randn(shape, generator=rng),
        noise=torch.randn(shape, generator=rng),
        sigma=torch.rand(case.batch, generator=rng),
        text=torch.randn(case.batch, case.tokens, config.caption_channels, generator=rng),
        mask=torch.arange(case.tokens) < lengths.unsqueeze(1),
    )


def weights_of(case: Case) -> dict[str, Tensor]:
    """Weights that keep activations near one."""
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in LinearDiT(case.config).named_parameters()}
    rng = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=rng)
        * (shape[1:].numel() if len(shape) > 1 else 9) ** -0.5
        for name, shape in shapes.items()
    }


def plain(case: Case) -> Step:
    """What one writes first: model, autocast, backward, clip, AdamW."""
    from diffusers import SanaTransformer2DModel

    values = config_to_dict(case.config)
    names = inspect.signature(SanaTransformer2DModel.__init__).parameters
    with torch.device("meta"):
        model = SanaTransformer2DModel(**{k: v for k, v in values.items() if k in names})
    model.load_state_dict(weights_of(case), assign=True)
    model = model.to(case.device).requires_grad_().train()
    if case.checkpointing:
        model.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01)
    batch = batch_of(case)
    batch = Batch(**{f.name: getattr(batch, f.name).to(case.device) for f in fields(batch)})
    dtype = getattr(torch, case.dtype)

    def step() -> float:
        x = interpolate(batch.x0, batch.noise, batch.sigma)
        with torch.autocast(case.device, dtype, enabled=dtype != torch.float32):
            predicted = model(
                x,
                batch.text,
                (1000 * batch.sigma).floor(),
                encoder_attention_mask=batch.mask,
                return_dict=False,
            )[0]
            loss = (predicted.float() - (batch.noise - batch.x0)).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


class StepRecipe(Recipe[Batch]):
    """Diffusion on one batch, given again and again; text cut to its longest caption."""

    def __init__(self, case: Case) -> None:
        with torch.device("meta"):
            self.module = LinearDiT(case.config)
        self.module.load_state_dict(weights_of(case), assign=True)
        self.module.requires_grad_()
        whole = batch_of(case)
        longest = int(whole.mask.sum(dim=1).max())
        self.batch = Batch(
            x0=whole.x0,
            noise=whole.noise,
            sigma=whole.sigma,
            text=whole.text[:, :longest].contiguous(),
            mask=whole.mask[:, :longest].contiguous(),
        )

    def stream(self, share: Share) -> Iterator[Batch]:
        """The batch, without end."""
        while True:
            yield self.batch

    def prepare(self, batch: Batch, device: torch.device, timers: Timers) -> Batch:
        """Bring it to the device."""
        return Batch(**{f.name: getattr(batch, f.name).to(device) for f in fields(batch)})

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The flow-matching loss, as the plain loop has it."""
        x = interpolate(batch.x0, batch.noise, batch.sigma)
        predicted = self.module(x, (1000 * batch.sigma).floor(), batch.text, batch.mask)
        return {"loss": flow_matching_loss(predicted, batch.x0, batch.noise).mean()}

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Nothing."""
        return {}

    def blocks(self) -> Iterator[nn.Module]:
        """The transformer's."""
        yield from self.module.transformer_blocks

    def checkpoint_gradients(self) -> None:
        """In the transformer."""
        self.module.gradient_checkpointing = True


def ours(case: Case) -> Step:
    """The step of the loop itself."""
    undo(case.without)
    config = LoopConfig(
        batch_size=case.batch,
        total_images=10**6,
        peak_lr=1e-5,
        betas=(0.9, 0.999),
        schedule="constant",
        compute_dtype=case.dtype,  # type: ignore[arg-type]
        gradient_checkpointing=case.checkpointing,
        compile_blocks=case.compiled,
        device=case.device,
    )
    recipe = StepRecipe(case)
    folder = Path(tempfile.mkdtemp(prefix="train-step-"))
    ranks = Ranks(device=torch.device(case.device))
    trainer = loop._Trainer(recipe, config, folder, ranks, lambda line: None)
    stream = recipe.stream(trainer.share)

    def step() -> float:
        return float(trainer.step(stream)["loss"])

    return step


def _direct(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    return function(*inputs)


def undo(name: str) -> None:
    """Take one measure back, in this process."""
    if name == "recompute":
        for module in (mix_ffn, linear_attention, transformer_module):
            module.recomputed = _direct  # type: ignore[attr-defined]
    elif name == "point":
        mix_ffn.PointConv.forward = nn.Conv2d.forward  # type: ignore[method-assign]
    elif name == "cast":
        transformer_module.product_dtype = lambda x: x.dtype  # type: ignore[attr-defined]
    elif name == "fused":
        from sanakit.train.optimizers import build

        build._fused = lambda parameters: False  # type: ignore[assignment]
    elif name == "layout":
        embed.PatchEmbed.forward = (  # type: ignore[method-assign]
            lambda self, x: self.proj(x).flatten(2).transpose(1, 2)
        )
    elif name:
        raise SystemExit(f"--without {name}: known are recompute, point, cast, fused and layout")


LOOPS: Mapping[str, Callable[[Case], Step]] = MappingProxyType({"plain": plain, "ours": ours})


def waited(case: Case, step: Step) -> tuple[float, float, float]:
    """Loss, seconds on the clock and seconds of CPU time of one step."""
    wall, cpu = time.perf_counter(), time.process_time()
    loss = step()
    if case.device != "cpu":
        torch.cuda.synchronize()
    return loss, time.perf_counter() - wall, time.process_time() - cpu


def speeds(case: Case, repeats: int) -> dict[str, Any]:
    steps = {name: make(case) for name, make in LOOPS.items()}
    walls: dict[str, list[float]] = {name: [] for name in steps}
    cpus: dict[str, list[float]] = {name: [] for name in steps}
    losses: dict[str, float] = {}
    for repeat in range(repeats + 1):
        for name, step in steps.items():
            loss, wall, cpu = waited(case, step)
            if repeat == 0:  # makes the optimizer's state
                losses[name] = loss
                continue
            walls[name].append(wall)
            cpus[name].append(cpu)
    ratios = [a / b for a, b in zip(walls["plain"], walls["ours"], strict=True)]
    cpu_ratios = [a / b for a, b in zip(cpus["plain"], cpus["ours"], strict=True)]
    return {
        "losses": losses,
        "seconds": {name: median(values) for name, values in walls.items()},
        "cpu_seconds": {name: median(values) for name, values in cpus.items()},
        "faster": median(ratios),
        "faster_cpu": median(cpu_ratios),
        "faster_from_to": (min(ratios), max(ratios)),
    }


def memory(case: Case, name: str) -> dict[str, float]:
    """Peak memory in MB of three steps in this process, and before the model was there."""
    from diffusers import SanaTransformer2DModel  # noqa: F401 - in both, not to count it

    gc.collect()
    before = _resident_mb()
    step = LOOPS[name](case)
    if case.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        step()
    if case.device != "cpu":
        return {"peak": torch.cuda.max_memory_allocated() / 2**20, "before": 0.0}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {"peak": peak, "before": before}


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 2**20


def memories(case: Case) -> dict[str, dict[str, float]]:
    found = {}
    for name in LOOPS:
        command = [sys.executable, "-m", "benchmarks.train_step", "--memory-of", name]
        for field in fields(case):
            value = getattr(case, field.name)
            flag = f"--{field.name}"
            command += ([flag] if value else []) if isinstance(value, bool) else [flag, str(value)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        found[name] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    for field in fields(Case):
        if isinstance(field.default, bool):
            parser.add_argument(f"--{field.name}", action="store_true")
        else:
            parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--memory-of", choices=LOOPS)
    parser.add_argument("--only", choices=["speed", "memory"])
    args = parser.parse_args()
    case = Case(**{field.name: getattr(args, field.name) for field in fields(Case)})
    torch.set_num_threads(case.threads)
    if args.memory_of:
        print(json.dumps(memory(case, args.memory_of)))
        return
    line: dict[str, Any] = asdict(case)
    if args.only != "speed":
        line["memory"] = found = memories(case)
        above = {name: each["peak"] - each["before"] for name, each in found.items()}
        for name, each in found.items():
            print(f"{name:6} peak {each['peak']:6.0f} MB, {above[name]:6.0f} above the libraries")
        line["memory_ratio"] = above["ours"] / above["plain"]
        whole = found["ours"]["peak"] / found["plain"]["peak"]
        print(f"memory x{line['memory_ratio']:.2f} (with the libraries x{whole:.2f})")
    if args.only != "memory":
        line |= speeds(case, args.repeats)
        for name in LOOPS:
            seconds, cpu = line["seconds"][name], line["cpu_seconds"][name]
            rate = case.batch / seconds
            print(
                f"{name:6} {seconds:7.3f} s a step, CPU {cpu:7.3f} s, {rate:6.2f} samples/s, "
                f"loss {line['losses'][name]:.5f}"
            )
        low, high = line["faster_from_to"]
        faster, faster_cpu = line["faster"], line["faster_cpu"]
        print(f"samples/s x{faster:.2f} ({low:.2f} to {high:.2f}; by CPU time x{faster_cpu:.2f})")
    facts = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": versions(),
        "cores": cores(),
        "load": os.getloadavg()[0],
    }
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(facts | line) + "\n")


if __name__ == "__main__":
    main()
