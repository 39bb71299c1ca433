"""What training, and one picture on several GPUs, take on paper: `python -m benchmarks.scaling`.

Counts parameters, operations, memory and traffic of the published sizes from their configs, and
puts assumed speeds beside them. ``--write`` renews the tables of docs/scaling.md, which says what
is counted, what is published and what is assumed.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sanakit.models.config import TRANSFORMERS, TransformerConfig

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
MODELS = {"0.6B": "sana-0.6b", "1.6B": "sana-1.6b", "4.8B": "sana1.5-4.8b"}
TEXT_TOKENS = 300
FREQUENCIES = 256
PIXELS_A_TOKEN = 32
MACHINE = 8
GPUS = (8, 64, 512)
BATCH = 2048
LARGEST_PART = 32
OPTIMIZER_BYTES = {"AdamW": 8.0, "CAME 8-bit": 1.05}
GiB = 2**30

Strategy = Literal["ddp", "fsdp", "hsdp"]


@dataclass(frozen=True, kw_only=True)
class Assumed:
    """What is not counted but taken for granted."""

    peak: float = 989e12
    """Operations a second of an H100 SXM in bf16, dense (its data sheet)."""
    efficiency: float = 0.4
    """Share of the peak that the kernels reach."""
    inside: float = 450e9
    """Bytes a second that each GPU sends to others of its machine."""
    card: float = 50e9
    """Bytes a second of one network card, 400 Gb/s."""
    cards: int = 1
    """Network cards of a machine."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One way to train one model."""

    model: str
    side: int
    gpus: int
    strategy: Strategy
    optimizer: str = "CAME 8-bit"
    batch: int = BATCH
    recompute: bool = True
    average: bool = True

    @property
    def config(self) -> TransformerConfig:
        """The shape of the network."""
        return TRANSFORMERS[MODELS[self.model]]

    @property
    def tokens(self) -> int:
        """Tokens of one picture."""
        return (self.side // PIXELS_A_TOKEN) ** 2

    @property
    def part(self) -> int:
        """Pictures that a GPU computes at once."""
        return min(LARGEST_PART, max(1, self.batch // self.gpus))

    @property
    def parts(self) -> int:
        """Times that it does so in a step."""
        return max(1, self.batch // (self.gpus * self.part))

    @property
    def shards(self) -> int:
        """GPUs over which weights, gradients and states are spread."""
        spread = {"ddp": 1, "fsdp": self.gpus, "hsdp": min(MACHINE, self.gpus)}
        return spread[self.strategy]


def block_parameters(config: TransformerConfig) -> int:
    """Weights of one block."""
    d, h = config.width, config.ffn_width
    norms = 4 * d if config.qk_norm else 0
    attention = 4 * d * d + d + 4 * (d * d + d) + norms
    ffn = 2 * h * (d + 1) + 2 * h * (9 + 1) + h * d
    return attention + ffn + 6 * d


def outer_parameters(config: TransformerConfig) -> int:
    """Weights outside the blocks."""
    d = config.width
    patch = (config.in_channels * config.patch_size**2 + 1) * d
    time = (FREQUENCIES + 1) * d + (d + 1) * d + 6 * (d + 1) * d
    text = (config.caption_channels + 1) * d + (d + 1) * d + d
    last = 2 * d + (d + 1) * config.output_channels * config.patch_size**2
    return patch + time + text + last


def parameters(config: TransformerConfig) -> int:
    """All weights of a transformer."""
    return config.num_layers * block_parameters(config) + outer_parameters(config)


def forward_flops(config: TransformerConfig, tokens: int, text: int = TEXT_TOKENS) -> int:
    """Operations of one picture's forward pass: two for each multiplication of a product."""
    d, h, patch = config.width, config.ffn_width, config.patch_size**2
    linear = tokens * (6 * d * d + 3 * h * d) + text * 2 * d * d
    linear_attention = tokens * (2 * d * config.attention_head_dim + d)
    cross_attention = 2 * tokens * text * d
    depthwise = 9 * 2 * h * tokens
    blocks = config.num_layers * (linear + linear_attention + cross_attention + depthwise)
    ends = tokens * patch * d * (config.in_channels + config.output_channels)
    time = FREQUENCIES * d + 7 * d * d
    caption = text * (config.caption_channels * d + d * d)
    return 2 * (blocks + ends + time + caption)


def kept_bytes(config: TransformerConfig, tokens: int, text: int = TEXT_TOKENS) -> int:
    """Bytes that one block keeps of one picture for the backward pass, in bf16 autocast."""
    d, h = config.width, config.ffn_width
    # fp32: the inputs of two norms. bf16: inputs of products, q k v, q of the text, results gated.
    return tokens * (2 * 4 * d + 11 * 2 * d + 2 * 2 * h) + text * 2 * 2 * d


def memory(run: Run) -> dict[str, float]:
    """Bytes of one GPU, by what they are for."""
    config, count = run.config, parameters(run.config)
    kept = kept_bytes(config, run.tokens)
    if run.recompute:
        activations = config.num_layers * run.tokens * 4 * config.width + kept
    else:
        activations = config.num_layers * kept
    if run.shards == 1:
        gathered = 2.0 * count
    else:  # this block and the next in bf16, gradients of one, and what lies outside the blocks
        block = block_parameters(config)
        gathered = 2.0 * (2 * block + outer_parameters(config)) + 4.0 * block
    # Between parts gradients are not reduced, and so lie whole on every GPU.
    whole = 4 * count if run.shards > 1 and run.parts > 1 else 0
    return {
        "weights": 4 * count / run.shards,
        "gradients": 4 * count / run.shards + whole,
        "optimizer": OPTIMIZER_BYTES[run.optimizer] * count / run.shards,
        "average": 4 * count / run.shards if run.average else 0.0,
        "gathered": gathered,
        "activations": float(run.part * activations),
    }


def traffic(run: Run) -> tuple[float, float]:
    """Bytes a step over each link of a ring: inside a machine, and over a machine's border."""
    count, shards = parameters(run.config), run.shards
    if run.strategy == "ddp":
        ring = 2 * 4 * count * (run.gpus - 1) / run.gpus
        return ring, ring if run.gpus > MACHINE else 0.0
    # Weights in bf16 for each pass of each part; gradients in fp32 after the last part.
    sharded = (run.parts * 2 * 2 + 4) * count * (shards - 1) / shards
    if run.strategy == "fsdp":
        return sharded, sharded if run.gpus > MACHINE else 0.0
    machines = run.gpus // shards
    # Each of the shards has a ring of its own, over the same border.
    return sharded, 2 * 4 * count * (machines - 1) / machines


def step_seconds(run: Run, assumed: Assumed) -> tuple[float, float]:
    """Seconds that a step computes, and that it sends; the longer one is the step's."""
    passes = 4 if run.recompute else 3
    work = run.parts * run.part * passes * forward_flops(run.config, run.tokens)
    inside, border = traffic(run)
    sending = max(inside / assumed.inside, border / (assumed.card * assumed.cards))
    return work / (assumed.peak * assumed.efficiency), sending


def utilisation(run: Run, assumed: Assumed) -> float:
    """MFU: useful operations, of three passes, over what the GPUs could do in the time."""
    useful = run.parts * run.part * 3 * forward_flops(run.config, run.tokens)
    return useful / (max(step_seconds(run, assumed)) * assumed.peak)


DRAWN = 4096
PASSES = 2
"""Of a step: conditional and unconditional, in one batch."""


@dataclass(frozen=True, kw_only=True)
class Sent:
    """Bytes that one of several processes sends in a block, or for a step where it says so."""

    sums: float
    """Its share of an all-reduce of the sums of keys and values, fp32, in a ring."""
    halo: float
    """A row of the widened Mix-FFN to each neighbour, bf16."""
    step: float
    """The latent to start with and the velocity, bf16, as rings hand them on."""


def sent(config: TransformerConfig, side: int, processes: int) -> Sent:
    """What sequence parallelism sends for a picture, both passes."""
    columns = side // PIXELS_A_TOKEN  # of tokens, whatever the patch
    heads, dh = config.num_attention_heads, config.attention_head_dim
    summary = PASSES * heads * dh * (dh + 1) * 4
    latent = PASSES * config.in_channels * (columns * config.patch_size) ** 2
    others = (processes - 1) / processes
    return Sent(
        sums=2 * others * summary,
        halo=min(2, processes - 1) * PASSES * columns * 2 * config.ffn_width * 2,
        step=2 * latent * (1 + others),
    )


def drawing() -> Iterator[list[str]]:
    assumed = Assumed()
    for name, preset in MODELS.items():
        config = TRANSFORMERS[preset]
        work = PASSES * forward_flops(config, (DRAWN // PIXELS_A_TOKEN) ** 2)
        for processes in (1, 2, 4, 8):
            seconds = work / processes / (assumed.peak * assumed.efficiency)
            if processes == 1:
                yield [name, "1", f"{1000 * seconds:.0f}", "", "", "", ""]
                continue
            own = sent(config, DRAWN, processes)
            total = config.num_layers * (own.sums + own.halo) + own.step
            yield [
                name,
                str(processes),
                f"{1000 * seconds:.0f}",
                f"{own.sums / 1e6:.2f}",
                f"{own.halo / 1e6:.1f}",
                f"{1000 * total / assumed.inside:.2f}",
                f"{1000 * total / assumed.card:.1f}",
            ]


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def models() -> Iterator[list[str]]:
    for name, preset in MODELS.items():
        config = TRANSFORMERS[preset]
        yield [
            name,
            f"{config.width} x {config.num_layers}",
            f"{parameters(config):,}",
            *(f"{forward_flops(config, n) / 1e9:,.0f}" for n in (256, 1024)),
            *(f"{kept_bytes(config, n) * config.num_layers / GiB:.2f}" for n in (256, 1024)),
        ]


def memories() -> Iterator[list[str]]:
    for name in MODELS:
        for gpus in GPUS:
            for optimizer in OPTIMIZER_BYTES:
                cells = []
                for strategy in ("ddp", "hsdp", "fsdp"):
                    run = Run(
                        model=name, side=1024, gpus=gpus, strategy=strategy, optimizer=optimizer
                    )
                    cells.append(f"{sum(memory(run).values()) / GiB:.1f}")
                acts = memory(run)["activations"] / GiB
                yield [
                    name,
                    str(gpus),
                    optimizer,
                    f"{run.parts} x {run.part}",
                    f"{acts:.1f}",
                    *cells,
                ]


def steps() -> Iterator[list[str]]:
    for name in MODELS:
        for side in (512, 1024):
            for gpus in GPUS:
                cells = []
                for strategy in ("ddp", "hsdp", "fsdp"):
                    run = Run(model=name, side=side, gpus=gpus, strategy=strategy)
                    inside, border = traffic(run)
                    slow, fast = Assumed(), Assumed(cards=8)
                    cells.append(
                        f"{inside / 1e9:.0f} / {border / 1e9:.0f} GB, "
                        f"{utilisation(run, slow):.0%} / {utilisation(run, fast):.0%}"
                    )
                work = step_seconds(run, Assumed())[0]
                yield [name, str(side), str(gpus), f"{work:.2f}", *cells]


STEPS = {"0.6B": 200_000, "1.6B": 200_000, "4.8B": 110_000}


def days() -> Iterator[list[str]]:
    for name, count in STEPS.items():
        cells = []
        for gpus in GPUS:
            for side in (512, 1024):
                run = Run(model=name, side=side, gpus=gpus, strategy="hsdp")
                cells.append(f"{count * max(step_seconds(run, Assumed())) / 86400:.1f}")
        yield [name, f"{count:,}", *cells]


def tables() -> dict[str, str]:
    """All tables of the page, by the name of their place."""
    by_gpus = [f"{gpus} GPUs, {side} px" for gpus in GPUS for side in (512, 1024)]
    ways = ["ddp", "hsdp", "fsdp"]
    sides = ["512 px", "1024 px"]
    return {
        "models": table(
            ["model", "width x blocks", "parameters"]
            + [f"GFLOP forward, {side}" for side in sides]
            + [f"GiB kept a picture, {side}" for side in sides],
            list(models()),
        ),
        "memory": table(
            ["model", "GPUs", "optimizer", "parts", "activations", *ways], list(memories())
        ),
        "steps": table(["model", "px", "GPUs", "seconds of computing", *ways], list(steps())),
        "days": table(["model", "steps", *by_gpus], list(days())),
        "drawing": table(
            [
                "model",
                "GPUs",
                "ms of computing a step",
                "MB of sums a block",
                "MB of halo a block",
                "ms of sending a step",
                "the same over one network card",
            ],
            list(drawing()),
        ),
    }


def renewed(page: str) -> str:
    """The page with every table as it is computed now."""
    for name, text in tables().items():
        page = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)",
            lambda found, text=text: f"{found[1]}{text}\n{found[2]}",  # type: ignore[misc]
            page,
            flags=re.DOTALL,
        )
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="renew the tables of docs/scaling.md")
    if parser.parse_args().write:
        PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    for text in tables().values():
        print(text, end="\n\n")


if __name__ == "__main__":
    main()
