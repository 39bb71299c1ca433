"""Time ``encode_prompt`` of diffusers' SanaPipeline and of ours in turn, and give ratios.

Random weights of Gemma-2-2B's shape with fewer layers and words; behind the published instruction,
cut to the length that it has for Gemma's own tokenizer, since the one of the tests makes more
tokens of it. A first prompt runs the instruction, too; for the next ones it is kept.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from benchmarks import ROOT
from sanakit.bench.record import append, facts

RESULTS = ROOT / "benchmarks" / "results" / "text.jsonl"
TOKENIZER = ROOT / "tests" / "fixtures" / "assets" / "tokenizer"
PROMPT = "a small white cat near a window with red flowers and a city street at dusk"
SHAPE = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
}


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def measure(settings: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each kind of call, in turn."""
    import torch
    from diffusers import SanaPipeline as Reference
    from transformers import AutoTokenizer, Gemma2Config, Gemma2Model

    from sanakit.models.gemma2 import Gemma2Model as Gemma2
    from sanakit.models.gemma2 import config_of
    from sanakit.models.text_encoder import TextEncoder
    from sanakit.pipeline.prompts import COMPLEX_HUMAN_INSTRUCTION, PromptEncoder

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    config = Gemma2Config(
        **SHAPE, num_hidden_layers=settings.layers, vocab_size=len(tokenizer), pad_token_id=0
    )
    llm = Gemma2Model._from_config(config, attn_implementation="eager").eval()
    llm.to(getattr(torch, settings.dtype))
    ids = tokenizer("\n".join(COMPLEX_HUMAN_INSTRUCTION))["input_ids"]
    instruction = [tokenizer.decode(ids[1 : settings.instruction_tokens])]
    theirs = Reference(tokenizer, llm, vae=None, transformer=None, scheduler=None)
    # As a folder is read: our network around the same weights.
    own_config = config_of(config.to_dict())
    assert own_config is not None
    own = Gemma2(own_config).eval().to(llm.dtype)
    own.load_state_dict(llm.state_dict(), assign=True)
    encoder = TextEncoder(own)

    def reference(prompt: str) -> Any:
        with torch.no_grad():
            return theirs.encode_prompt(
                prompt,
                True,
                device=torch.device("cpu"),
                max_sequence_length=300,
                complex_human_instruction=instruction,
            )

    def ours(prompts: PromptEncoder, prompt: str) -> Any:
        positive = prompts.encode([prompt], instruction=instruction)
        return positive, prompts.encode_null([""], positive)

    expected = reference(PROMPT)
    found, null = ours(PromptEncoder(tokenizer, encoder), PROMPT)
    real = found.mask[0]
    result: dict[str, Any] = {
        "tokens": int(real.sum()),
        "difference": float((found.text[0][real] - expected[0][0, : len(real)][real]).abs().max()),
        "null_difference": float((null.text[0, 0] - expected[2][0, 0]).abs().max()),
    }
    taken: dict[str, list[float]] = {"diffusers": [], "first": [], "next": [], "again": []}
    for turn in range(settings.turns):
        prompts = PromptEncoder(tokenizer, encoder)
        taken["diffusers"].append(seconds(lambda: reference(PROMPT)))
        taken["first"].append(seconds(lambda held=prompts: ours(held, PROMPT)))  # type: ignore[misc]
        for name, prompt in (("next", f"{PROMPT} {turn}"), ("again", PROMPT)):
            taken[name].append(seconds(lambda held=prompts, one=prompt: ours(held, one)))  # type: ignore[misc]
    whole = taken["diffusers"]
    for name, times in taken.items():
        ratios = sorted(a / b for a, b in zip(whole, times, strict=True))
        result[name] = {
            "seconds": median(times),
            "least": min(times),
            "faster": median(ratios),
            "faster_from_to": (ratios[0], ratios[-1]),
        }
    return result


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.text", description=__doc__)
    parser.add_argument("--layers", type=int, default=4, help="Gemma-2-2B has 26")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--instruction-tokens", type=int, default=230)
    return parser.parse_args(arguments)


def main() -> None:
    """Measure, print the ratios, append a line of JSON."""
    import torch

    settings = parse()
    record = {
        **facts(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "settings": vars(settings),
        **measure(settings),
    }
    for name in ("diffusers", "first", "next", "again"):
        kind = record[name]
        low, high = kind["faster_from_to"]
        print(
            f"{name}: {kind['seconds']:.3f} s (least {kind['least']:.3f}), "
            f"{kind['faster']:.1f} times as fast as diffusers ({low:.1f}-{high:.1f})"
        )
    print(f"largest difference {record['difference']:.2g} in {record['tokens']} states")
    append(RESULTS, record)
    print(f"appended to {RESULTS.relative_to(ROOT)}", file=sys.stderr)


if __name__ == "__main__":
    main()
