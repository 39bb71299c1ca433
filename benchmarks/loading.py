"""Peak host memory while a model loads: `python -m benchmarks.loading [--blocks N]`.

Writes a model of random bf16 weights in the published layout (layers of the 1.6B transformer and
of Gemma-2-2B, the published autoencoder), loads it in a process of its own, and prints the peak of
that process less what it had before, against the size of the weights. Bar: size + 1 GB.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

GB = 1e9
BAR = 1 * GB
TOKENIZER = Path(__file__).parents[1] / "tests" / "fixtures" / "assets" / "tokenizer"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=4, help="of transformer and LLM")
    parser.add_argument("--folder", type=Path, help="a model folder of yours instead")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--arguments", default="{}", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load is not None:
        print(json.dumps(measure(options.load, json.loads(options.arguments))))
        return 0
    made = options.folder is None
    folder = Path(tempfile.mkdtemp()) if made else options.folder
    try:
        if made:
            write_model(folder, options.blocks)
        size = sum(path.stat().st_size for path in folder.glob("*/*.safetensors"))
        missed = 0
        for name, arguments, expected in (
            ("as stored, bf16", {"torch_dtype": "bfloat16"}, size),
            ("converted to fp32", {"torch_dtype": "float32"}, 2 * size),
            # The mapped source, which the system drops when memory is short, and half of it anew.
            ("int8", {"torch_dtype": "bfloat16", "quantization_config": "bnb-int8"}, 1.5 * size),
        ):
            found = in_another_process(folder, arguments)
            peak = found["peak"]
            missed += peak > expected + BAR
            print(
                f"{name:20} weights {expected / GB:5.2f} GB   peak {peak / GB:5.2f} GB "
                f"({(peak - expected) / GB:+.2f})   {found['seconds']:.1f} s"
            )
    finally:
        if made:
            shutil.rmtree(folder)
    return min(missed, 1)


def in_another_process(folder: Path, arguments: dict[str, str]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.loading", "--load", str(folder)]
    command += ["--arguments", json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def measure(folder: Path, arguments: dict[str, str]) -> dict[str, float]:
    """Load once and touch every weight, so that mapped pages count."""
    from sanakit import SanaPipeline

    if "quantization_config" in arguments:
        import bitsandbytes  # noqa: F401  so that the library itself is not counted
    before = resident("VmRSS")
    started = time.perf_counter()
    dtype = getattr(torch, arguments.pop("torch_dtype"))
    pipe = SanaPipeline.from_pretrained(folder, torch_dtype=dtype, **arguments)
    seconds = time.perf_counter() - started
    for module in pipe.core.components.networks.values():
        for tensor in module.state_dict().values():
            tensor.flatten()[::512].float().sum()
    return {"peak": resident("VmHWM") - before, "seconds": seconds}


def resident(field: str) -> int:
    """Bytes of physical memory of this process now (VmRSS) or at most (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this benchmark reads /proc/self/status, which only Linux has")


def write_model(folder: Path, blocks: int) -> None:
    from accelerate import init_empty_weights
    from transformers import AutoTokenizer, Gemma2Config, Gemma2Model

    from sanakit.models.autoencoder import Autoencoder
    from sanakit.models.config import AUTOENCODERS, TRANSFORMERS
    from sanakit.models.text_encoder import TextEncoder
    from sanakit.models.transformer import LinearDiT
    from sanakit.pipeline.components import Components, save_components
    from sanakit.pipeline.prompts import PromptEncoder

    tokenizer = AutoTokenizer.from_pretrained(str(TOKENIZER))
    with init_empty_weights(include_buffers=False):
        llm = Gemma2Model._from_config(
            Gemma2Config(num_hidden_layers=blocks), attn_implementation="eager"
        )
    with torch.device("meta"):
        transformer = LinearDiT(replace(TRANSFORMERS["sana-1.6b"], num_layers=blocks))
        autoencoder = Autoencoder(AUTOENCODERS["dc-ae-f32c32-sana-1.0"])
    for module in (llm, transformer, autoencoder):
        randomise(module)
    parts = Components(
        transformer=transformer,
        autoencoder=autoencoder,
        prompts=PromptEncoder(tokenizer, TextEncoder(llm), instruction=None),
    )
    save_components(parts, folder, max_shard_bytes=1_000_000_000)


def randomise(module: nn.Module) -> None:
    for parent in list(module.modules()):
        for name, parameter in list(parent.named_parameters(recurse=False)):
            values = torch.empty(parameter.shape, dtype=torch.bfloat16).normal_(std=0.02)
            setattr(parent, name, nn.Parameter(values, requires_grad=False))


if __name__ == "__main__":
    sys.exit(main())
