"""Every published pipeline beside diffusers' of the same name: seconds, peak memory, one run.

Random weights of the published 0.6B configuration, written once, are loaded by both from the same
folder. Each pipeline has a process of its own, ours and theirs in turn. Text is given as
embeddings, so that no text encoder is loaded.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import ROOT
from sanakit.bench.record import append, facts, summarise

RESULTS = ROOT / "benchmarks" / "results" / "pipelines.jsonl"
SIDES = ("sanakit", "diffusers")
PIPELINES = {  # class, folder of weights, whether it guides by a second pass
    "SanaPipeline": ("base", True),
    "SanaPAGPipeline": ("base", True),
    "SanaControlNetPipeline": ("base", True),
    "SanaSprintPipeline": ("sprint", False),
    "SanaSprintImg2ImgPipeline": ("sprint", False),
}
OURS_ALONE = {"SanaImg2ImgPipeline": ("base", True), "SanaInpaintPipeline": ("base", True)}
TOKENS = 300


def transformer_config(size: str, kind: str) -> dict[str, Any]:
    """The published 0.6B transformer, or a small one to try this benchmark with."""
    small = size == "tiny"
    config: dict[str, Any] = {
        "num_layers": 2 if small else 28,
        "num_attention_heads": 4 if small else 36,
        "attention_head_dim": 32,
        "num_cross_attention_heads": 4 if small else 16,
        "cross_attention_head_dim": 32 if small else 72,
        "cross_attention_dim": 128 if small else 1152,
        "caption_channels": 2304,
        "sample_size": 16,
    }
    if kind == "sprint":
        config |= {
            "sample_size": 32,
            "guidance_embeds": True,
            "qk_norm": "rms_norm_across_heads",
        }
    return config


def write_weights(folder: Path, size: str, kinds: Sequence[str] = ("base", "sprint")) -> None:
    """Save the parts of these kinds of model in the published layout, by diffusers."""
    import diffusers

    torch.manual_seed(0)
    narrow = {
        "encoder_block_out_channels": (32,) * 6,
        "decoder_block_out_channels": (32,) * 6,
        "encoder_layers_per_block": (1,) * 6,
        "decoder_layers_per_block": (1,) * 6,
        "encoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
        "decoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
    }
    shape: dict[str, Any] = narrow if size == "tiny" else published_autoencoder()
    types = ["ResBlock", "ResBlock", "ResBlock", *["EfficientViTBlock"] * 3]
    vae = diffusers.AutoencoderDC(
        encoder_block_types=types,
        decoder_block_types=types,
        downsample_block_type="Conv",
        upsample_block_type="interpolate",
        scaling_factor=0.41407,
        **shape,
    )
    for kind in kinds:
        network = diffusers.SanaTransformer2DModel(**transformer_config(size, kind))
        scheduler: Any = diffusers.SCMScheduler()
        name = "SanaSprintPipeline"
        if kind == "base":
            name = "SanaPipeline"
            scheduler = diffusers.DPMSolverMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            )
            branch = diffusers.SanaControlNetModel(
                **{**transformer_config(size, kind), "num_layers": 2 if size == "tiny" else 7}
            )
            branch.save_pretrained(folder / "controlnet")
        pipeline = getattr(diffusers, name)(
            tokenizer=None, text_encoder=None, vae=vae, transformer=network, scheduler=scheduler
        )
        pipeline.save_pretrained(folder / kind)


def published_autoencoder() -> dict[str, Any]:
    """Shape of ``dc-ae-f32c32-sana-1.0``."""
    widths = (128, 256, 512, 512, 1024, 1024)
    scales = ((), (), (), (5,), (5,), (5,))
    return {
        "encoder_block_out_channels": widths,
        "decoder_block_out_channels": widths,
        "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
        "decoder_layers_per_block": (3,) * 6,
        "encoder_qkv_multiscales": scales,
        "decoder_qkv_multiscales": scales,
    }


def one(side: str, name: str, folder: Path, settings: argparse.Namespace) -> dict[str, float]:
    """Load and draw in this process; ``again`` is a second drawing, warm."""
    from PIL import Image

    kind, guided = (PIPELINES | OURS_ALONE)[name]
    library = importlib.import_module(side)
    started = time.perf_counter()
    given: dict[str, Any] = {"text_encoder": None, "tokenizer": None}
    if name == "SanaControlNetPipeline":
        branch = library.SanaControlNetModel.from_pretrained(folder / "controlnet")
        given["controlnet"] = branch
    pipe = getattr(library, name).from_pretrained(folder / kind, **given)
    pipe.set_progress_bar_config(disable=True)
    run = {"load": time.perf_counter() - started}
    side_of = torch.Generator().manual_seed(1)
    call: dict[str, Any] = {
        "prompt": None,
        "prompt_embeds": torch.randn(1, TOKENS, 2304, generator=side_of),
        "prompt_attention_mask": torch.ones(1, TOKENS, dtype=torch.long),
        "num_inference_steps": settings.steps if guided else 2,
        "height": settings.size,
        "width": settings.size,
        "use_resolution_binning": False,
        "generator": torch.Generator().manual_seed(2),
        "output_type": "pt",
    }
    if guided:
        call["negative_prompt_embeds"] = torch.randn(1, TOKENS, 2304, generator=side_of)
        call["negative_prompt_attention_mask"] = torch.ones(1, TOKENS, dtype=torch.long)
        call["negative_prompt"] = None
    picture = Image.linear_gradient("L").convert("RGB").resize((settings.size, settings.size))
    if "Img2Img" in name or "Inpaint" in name:
        call["image"] = picture
        call["strength"] = 0.5
    if "Inpaint" in name:
        call["mask_image"] = picture.convert("L").point(lambda v: 255 * (v > 127))
    if name == "SanaControlNetPipeline":
        call["control_image"] = picture
    for key in ("first", "again"):
        started = time.perf_counter()
        pipe(**call)
        run[key] = time.perf_counter() - started
    run["peak_memory_mb"] = peak_memory_mb()
    return run


def peak_memory_mb() -> float:
    """Of this process; getrusage also counts what its parent had before the program began."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, append one line of JSON a pipeline."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipelines", description=__doc__)
    parser.add_argument("--config", choices=("0.6b", "tiny"), default="0.6b")
    parser.add_argument("--size", type=int, default=512, help="pixels of both sides")
    parser.add_argument("--steps", type=int, default=4, help="solver steps; Sprint takes 2")
    parser.add_argument("--pairs", type=int, default=2, help="processes of each side, in turn")
    parser.add_argument("--work", type=Path, help="folder of the weights; kept where it is given")
    parser.add_argument("--only", action="append", help="a pipeline's class name")
    parser.add_argument("--one", nargs=2, metavar=("SIDE", "CLASS"), help=argparse.SUPPRESS)
    settings = parser.parse_args(arguments)
    if settings.one:
        print(json.dumps(one(*settings.one, settings.work, settings)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        work = settings.work or Path(scratch)
        if not (work / "sprint").is_dir():
            write_weights(work, settings.config)
        for name in settings.only or (PIPELINES | OURS_ALONE):
            measure(name, work, settings)


def measure(name: str, work: Path, settings: argparse.Namespace) -> None:
    """Run the pairs of one pipeline."""
    runs: dict[str, list[dict[str, float]]] = {}
    for _ in range(settings.pairs):
        for side in SIDES if name in PIPELINES else SIDES[:1]:
            command = [sys.executable, "-m", "benchmarks.pipelines", "--one", side, name]
            for option in ("size", "steps"):
                command += [f"--{option}", str(getattr(settings, option))]
            done = subprocess.run(
                [*command, "--work", str(work)], stdout=subprocess.PIPE, text=True, check=True
            )
            runs.setdefault(side, []).append(json.loads(done.stdout.splitlines()[-1]))
    record = {
        **facts(("sanakit", "torch", "diffusers")),
        "pipeline": name,
        "settings": {"config": settings.config, "size": settings.size, "steps": settings.steps},
        **{side: summarise(each) for side, each in runs.items()},
    }
    for side, each in runs.items():
        lowest = {key: min(run[key] for run in each) for key in each[0]}
        cells = "  ".join(
            f"{key} {value:.{0 if 'mb' in key else 2}f}" for key, value in lowest.items()
        )
        print(f"{name:<26}{side:<10}{cells}", flush=True)
    append(RESULTS, record)


if __name__ == "__main__":
    main()
