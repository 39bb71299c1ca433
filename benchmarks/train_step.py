"""A step of our training loop beside a plain loop around diffusers' model and torch's AdamW.

``python -m benchmarks.train_step`` has both, each in a process of its own, take steps in turn: same
weights, same batch. Printed are the middle of each, the middle of the ratios of neighbours, peak
memory, with all libraries, and MFU. ``--loops plain ours ours-NAME`` undoes one of our measures.
"""

from __future__ import annotations

import argparse
import gc
import inspect
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from benchmarks import ROOT
from sanakit.bench.record import facts
from sanakit.bench.turns import Served, compared, steps_in_turn
from sanakit.flow.path import flow_matching_loss, interpolate
from sanakit.models import transformer as transformer_module
from sanakit.models.config import TRANSFORMERS, TransformerConfig, config_to_dict
from sanakit.models.flops import transformer_flops
from sanakit.models.transformer import LinearDiT
from sanakit.nn import cpu, embed, linear_attention, mix_ffn
from sanakit.train import loop
from sanakit.train.config import LoopConfig
from sanakit.train.distributed import network
from sanakit.train.distributed.ranks import Ranks
from sanakit.train.mfu import peak_of
from sanakit.train.recipe import Recipe, Timers
from sanakit.train.sample_schedule import SampleSchedule

RESULTS = ROOT / "benchmarks" / "results" / "train_step.jsonl"
MEASURES = ("memory", "attention", "point", "recompute", "cast", "fused", "layout")
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

    def stream(self, schedule: SampleSchedule) -> Iterator[Batch]:
        """The batch, without end."""
        while True:
            yield self.batch

    def prepare(self, batch: Batch, device: torch.device, timers: Timers) -> Batch:
        """Bring it to the device."""
        return Batch(**{f.name: getattr(batch, f.name).to(device) for f in fields(batch)})

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The flow-matching loss, as the plain loop has it."""
        x = interpolate(batch.x0, batch.noise, batch.sigma)
        timestep = (1000 * batch.sigma).floor()
        predicted = self.module(x, batch.text, timestep, encoder_attention_mask=batch.mask).sample
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
    trainer = loop.Trainer(recipe, config, folder, ranks, lambda line: None)
    stream = recipe.stream(trainer.schedule)

    def step() -> float:
        return float(trainer.step(stream)["loss"])

    return step


def _direct(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    return function(*inputs)


def undo(name: str) -> None:
    """Take one measure back, in this process."""
    if name == "memory":
        network.keep_freed_memory = lambda: False  # type: ignore[assignment]
    elif name == "recompute":
        for module in (mix_ffn, transformer_module):
            module.recomputed = _direct  # type: ignore[attr-defined]
    elif name == "attention":
        plain = linear_attention.relu_linear_attention
        linear_attention.trained_linear_attention = plain  # type: ignore[assignment]
    elif name == "point":
        cpu.PointConv.forward = nn.Conv2d.forward  # type: ignore[method-assign]
    elif name == "cast":
        transformer_module.product_dtype = lambda x: x.dtype  # type: ignore[attr-defined]
    elif name == "fused":
        from sanakit.train.optim import build

        build._fused = lambda parameters: False  # type: ignore[assignment]
    elif name == "layout":
        embed.PatchEmbed.forward = (  # type: ignore[method-assign]
            lambda self, x: self.proj(x).flatten(2).transpose(1, 2)
        )
    elif name:
        raise SystemExit(f"ours-{name}: known are {', '.join(MEASURES)}")


LOOPS: Mapping[str, Callable[[Case], Step]] = MappingProxyType({"plain": plain, "ours": ours})


def serve(case: Case, name: str) -> None:
    """Take a step for each line that comes in; print a line of JSON before all and after each.

    Both loops load the same libraries, so that these do not count.
    """
    if _has_plain():
        from diffusers import SanaTransformer2DModel  # noqa: F401

    torch.set_num_threads(case.threads)
    gc.collect()
    before = _resident_mb()
    loop_name, _, without = name.partition("-")
    step = LOOPS[loop_name](replace(case, without=without))
    print(json.dumps({"before": before}), flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        loss = step()
        if case.device != "cpu":
            torch.cuda.synchronize()
        found = {
            "loss": loss,
            "wall": time.perf_counter() - wall,
            "cpu": time.process_time() - cpu,
            "peak": _peak_mb(case.device),
        }
        print(json.dumps(found), flush=True)


def _has_plain() -> bool:
    return find_spec("diffusers") is not None


def share_of_peak(case: Case, seconds: float) -> float | None:
    """MFU of a step: three passes over what the model computes; None where the peak is unknown."""
    tokens = int(batch_of(case).mask.sum(dim=1).max())
    forward = transformer_flops(case.config, (case.side, case.side), tokens)
    peak = peak_of(torch.device(case.device), case.dtype)  # type: ignore[arg-type]
    return 3 * forward * case.batch / (seconds * peak) if peak else None


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 2**20


def _peak_mb(device: str) -> float:
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return torch.cuda.max_memory_allocated() / 2**20


def started(case: Case, name: str) -> Served:
    """A loop in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.train_step", "--serve", name]
    for field in fields(case):
        value, flag = getattr(case, field.name), f"--{field.name}"
        command += ([flag] if value else []) if isinstance(value, bool) else [flag, str(value)]
    return Served(command, threads=case.threads)


def main() -> None:
    """Compare, print a table, append a line of JSON."""
    parser = argparse.ArgumentParser()
    for field in fields(Case):
        if isinstance(field.default, bool):
            parser.add_argument(f"--{field.name}", action="store_true")
        else:
            parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--name", help="of the case, in the results")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of JSON lines")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument(
        "--loops", nargs="+", default=["plain", "ours"], help="ours-NAME is ours without NAME"
    )
    args = parser.parse_args()
    case = Case(**{field.name: getattr(args, field.name) for field in fields(Case)})
    if args.serve:
        serve(case, args.serve)
        return
    loops = args.loops
    if "plain" in loops and not _has_plain():
        print("diffusers is not installed: there is no plain loop beside ours")
        loops = [name for name in loops if name != "plain"] or ["ours"]
    torch.set_num_threads(case.threads)  # the peak of a processor is measured with as many
    servers = {name: started(case, name) for name in loops}
    taken = steps_in_turn(servers, args.repeats)
    found = compared(taken)
    for name, each in found.items():
        each["loss"] = taken[name][0]["loss"]  # the first step makes an optimizer's state
        each["above_libraries_mb"] = each["peak_mb"] - servers[name].before
        each["mfu"] = share_of_peak(case, each["seconds"])
    base = found[loops[0]]
    head = f"{'':16}{'s a step':>9}{'CPU s':>8}{'faster':>8}{'':>14}{'by CPU':>8}{'MB':>7}"
    print(f"{head}{'':>7}{'MFU':>9}")
    for name, each in found.items():
        low, high = each["faster_from_to"]
        print(
            f"{name:16}{each['seconds']:9.3f}{each['cpu_seconds']:8.3f}  x{each['faster']:5.2f}"
            f" ({low:4.2f} to{high:5.2f}){each['faster_cpu']:7.2f}{each['peak_mb']:8.0f}"
            f"  x{each['peak_mb'] / base['peak_mb']:4.2f}"
            + ("  unknown" if each["mfu"] is None else f"{each['mfu']:9.1%}")
            + f"  loss {each['loss']:.5f}"
        )
    record = {
        **({"name": args.name} if args.name else {}),
        **facts(),
    }
    with args.results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record | {"case": asdict(case), "loops": found}) + "\n")


if __name__ == "__main__":
    main()
