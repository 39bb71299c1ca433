"""Seconds of one guided step of a published transformer's shape, beside diffusers' and the floor.

`python -m benchmarks.transformer_step --size 512 --dtype float32`: random weights, equal in both,
one picture with guidance, so two rows. All take turns in one process. The floor is what the matrix
products of the blocks with image tokens take by themselves, at these shapes and by the library that
we take, in the same turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import ROOT
from sanakit.bench.record import append, facts
from sanakit.flow.grids import NoiseLevel
from sanakit.flow.guidance import Guidance
from sanakit.models.config import TRANSFORMERS, TransformerConfig
from sanakit.models.transformer import LinearDiT
from sanakit.nn.inference import product
from sanakit.nn.processor import tune_process
from sanakit.pipeline.prompts import EncodedText
from sanakit.pipeline.sampler import Denoiser

RESULTS = ROOT / "benchmarks" / "results" / "transformer_step.jsonl"
SCALE = 4.5
PLACES = 300
"""Of text, as published; ours leaves out those that hold none."""
PIXELS = 32
"""Side of a latent position."""
Step = Callable[[], Tensor]


def model_of(config: TransformerConfig, dtype: torch.dtype) -> LinearDiT:
    """Random weights, made in ``dtype``; text at full strength."""
    with torch.device("meta"):
        model = LinearDiT(config).to(dtype)
    model = model.to_empty(device="cpu").eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.02)
    model.caption_norm.weight.fill_(1)
    return model


def ours(model: LinearDiT, x: Tensor, positive: Tensor, negative: Tensor) -> Step:
    """A step as the sampler takes it; texts are ``1 l c``, as long as they are."""

    def text(states: Tensor) -> EncodedText:
        mask = torch.ones(states.shape[:2], dtype=torch.bool)
        return EncodedText(text=states, mask=mask, dropped=(0,))

    guidance = Guidance(guidance_scale=SCALE)
    denoiser = Denoiser.prepare(model, text(positive), text(negative), guidance)
    level = NoiseLevel(torch.tensor(0.5), torch.tensor(500.0))
    return lambda: denoiser(x, level)


def published(model: LinearDiT, x: Tensor, positive: Tensor, negative: Tensor) -> Step:
    """A step as diffusers' pipeline takes it."""
    from diffusers import SanaTransformer2DModel

    config = asdict(model.config)
    del config["attention_clip"]
    with torch.device("meta"):
        network = SanaTransformer2DModel(**config)
    network.load_state_dict(model.state_dict(), assign=True)
    network = network.eval().requires_grad_(False)
    both = [F.pad(states, (0, 0, 0, PLACES - states.shape[1])) for states in (negative, positive)]
    lengths = torch.tensor([[negative.shape[1]], [positive.shape[1]]])
    text, mask = torch.cat(both), (torch.arange(PLACES) < lengths).long()

    def step() -> Tensor:
        predicted = network(
            torch.cat([x] * 2).to(text.dtype),
            encoder_hidden_states=text,
            encoder_attention_mask=mask,
            timestep=torch.full((2,), 500.0),
            return_dict=False,
        )[0]
        uncond, cond = predicted.float().chunk(2)
        return uncond + SCALE * (cond - uncond)

    return step


def products(model: LinearDiT, tokens: int) -> tuple[Step, int]:
    """All matrix products of the blocks with image tokens, and their operations."""
    dtype = model.proj_out.weight.dtype
    sizes = (model.config.width, model.config.ffn_width)
    inputs = {size: torch.randn(tokens, size).to(dtype) for size in sizes}
    weights = [
        weight.flatten(1)
        for name, weight in model.transformer_blocks.named_parameters()
        if name.endswith("weight") and not name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
    ]
    weights = [weight for weight in weights if weight.shape[1] in inputs]

    def run() -> Tensor:
        for weight in weights:
            made = product(inputs[weight.shape[1]], weight, None)
        return made

    return run, 2 * tokens * sum(weight.numel() for weight in weights)


def in_turn(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, round by round, after one of each that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(rounds + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if round_:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.transformer_step", description=__doc__
    )
    parser.add_argument("--preset", default="sana-0.6b", choices=sorted(TRANSFORMERS))
    parser.add_argument("--layers", type=int, help="fewer blocks than the preset has")
    parser.add_argument("--size", type=int, default=512, help="side of the picture")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--words", type=int, default=PLACES, help="tokens of the prompt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without", nargs="*", default=(), help="contestants to leave out")
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    """Take turns, print a table, append one line of JSON."""
    settings = parse()
    torch.manual_seed(0)
    tune_process()  # as our commands do
    config = TRANSFORMERS[settings.preset]
    if settings.layers:
        config = replace(config, num_layers=settings.layers)
    dtype = getattr(torch, settings.dtype)
    model = model_of(config, dtype)
    side = settings.size // PIXELS
    x = torch.randn(1, config.in_channels, side, side)
    words = (torch.randn(1, n, config.caption_channels).to(dtype) for n in (settings.words, 1))
    given = (model, x, *words)
    floor, flops = products(model, 2 * side**2 // config.patch_size**2)
    steps = {"sanakit": ours(*given), "floor": floor}
    if "diffusers" not in settings.without:
        steps["diffusers"] = published(*given)
        apart = (steps["diffusers"]() - steps["sanakit"]()).abs().max()
        print(
            f"largest difference {float(apart):.2g} of {float(steps['sanakit']().abs().max()):.2g}"
        )
    seconds = in_turn(steps, settings.rounds)
    middle = {name: median(taken) for name, taken in seconds.items()}
    record = {
        **facts(("sanakit", "torch", "diffusers")),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "settings": vars(settings),
        "seconds": {name: [round(each, 4) for each in taken] for name, taken in seconds.items()},
        "gflops_of_floor": round(flops / middle["floor"] / 1e9, 1),
        "floor_over_ours": round(middle["floor"] / middle["sanakit"], 3),
    }
    if "diffusers" in middle:
        record["faster_than_diffusers"] = round(middle["diffusers"] / middle["sanakit"], 3)
    for name, taken in seconds.items():
        print(f"{name:10} median {middle[name]:.3f} s, lowest {min(taken):.3f}")
    for name in ("instructions", "gflops_of_floor", "floor_over_ours", "faster_than_diffusers"):
        print(name, record.get(name))
    append(RESULTS, record)


if __name__ == "__main__":
    main()
