"""Time the text encoder with the instruction's states kept and without, in turn, and give ratios.

Random weights of Gemma-2's shape; the instruction is cut to the length that it has for Gemma's own
tokenizer, since the one of the tests makes more tokens of it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import partial
from typing import Any

from benchmarks.generate import ROOT, commit, cores, summarise, versions

RESULTS = ROOT / "benchmarks" / "results" / "prefix.jsonl"
TOKENIZER = ROOT / "tests" / "fixtures" / "assets" / "tokenizer"
SHAPES = {
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8},
    "moderate": {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 8,
        "head_dim": 64,
    },
    # Gemma-2-2B is 26 of these.
    "gemma-2-2b-2-layers": {
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 2,
        "head_dim": 256,
    },
}
PROMPT = "a small white cat near a window with red flowers and a city street at dusk"


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def measure(shape: str, settings: argparse.Namespace) -> dict[str, Any]:
    """Ratios of pairs for every number of prompts."""
    import torch
    from transformers import AutoTokenizer, Gemma2Config, Gemma2Model

    from sanakit.models.text_encoder import TextEncoder
    from sanakit.pipeline.prompts import COMPLEX_HUMAN_INSTRUCTION, PromptCache, PromptEncoder

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": len(tokenizer)}
    config = Gemma2Config(**SHAPES[shape], **heads)
    text_encoder = TextEncoder(Gemma2Model._from_config(config, attn_implementation="eager"))

    ids = tokenizer("\n".join(COMPLEX_HUMAN_INSTRUCTION))["input_ids"]
    instruction = [tokenizer.decode(ids[1 : settings.instruction_tokens])]

    def encoder(cache: PromptCache) -> PromptEncoder:
        return PromptEncoder(tokenizer, text_encoder, instruction=instruction, cache=cache)

    kept = encoder(PromptCache(prompt_bytes=0))
    plain = encoder(PromptCache.off())
    result: dict[str, Any] = {
        "shape": shape,
        "instruction_tokens": len(tokenizer(instruction[0])["input_ids"]),
        "prompt_tokens": len(tokenizer(PROMPT)["input_ids"]) - 1,
    }
    for count in settings.prompts:
        prompts = [PROMPT] * count
        cached = partial(kept.encode, prompts, instruction=instruction)
        uncached = partial(plain.encode, prompts, instruction=instruction)
        cached()
        uncached()
        pairs = []
        for _ in range(settings.pairs):
            with_cache, without = seconds(cached), seconds(uncached)
            pairs.append({"cached": with_cache, "uncached": without, "ratio": without / with_cache})
        result[f"prompts_{count}"] = summarise(pairs)
    return result


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prefix", description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES)[1:])
    parser.add_argument("--prompts", nargs="+", type=int, default=[1, 8], help="rows of a batch")
    parser.add_argument("--pairs", type=int, default=7, help="runs of each kind, in turn")
    parser.add_argument("--instruction-tokens", type=int, default=230)
    return parser.parse_args(arguments)


def main() -> None:
    """Measure, print the ratios, append one line of JSON for each shape."""
    settings = parse()
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    for shape in settings.shapes:
        record = {
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "commit": commit(),
            "versions": versions(),
            "machine": platform.machine(),
            "cores": cores(),
            "threads": os.environ.get("OMP_NUM_THREADS"),
            "load_average": round(os.getloadavg()[0], 2),
            "settings": vars(settings),
            **measure(shape, settings),
        }
        for count in settings.prompts:
            found = record[f"prompts_{count}"]
            low, middle, high = (found["ratio"][key] for key in ("min", "median", "max"))
            print(
                f"{shape}, {count} prompts: {found['uncached']['median']:.3f} s without, "
                f"{found['cached']['median']:.3f} s with, ratio {middle:.1f} ({low:.1f}-{high:.1f})"
            )
        print(
            f"{shape}, first call: {record['first_call_writes']:.3f} s and a file of "
            f"{record['file_mb']:.1f} MB, {record['first_call_reads']:.3f} s with it"
        )
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    print(f"appended to {RESULTS.relative_to(ROOT)}", file=sys.stderr)


if __name__ == "__main__":
    main()
