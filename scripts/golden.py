"""Digests of what the product makes, to compare two trees on one machine.

    python scripts/golden.py WORK > before.json     # in one tree
    python scripts/golden.py WORK > after.json      # in the other; WORK is made anew
    python scripts/golden.py WORK pipeline          # a part: command, pipeline, training
    diff before.json after.json

Pictures by the command and by each published pipeline, of the embedded model and of a random one in
the published layout; a shard set; twenty steps of training, whole, as a LoRA, and resumed after
ten; a trained autoencoder. Only commands and public names are used, so that it says the same of
trees whose insides differ. Digests hold for one machine: another processor rounds differently.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer, Gemma2Config, Gemma2Model

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "a red apple"


def digest(data: bytes) -> str:
    """Enough of a sha256 to tell two of them apart."""
    return hashlib.sha256(data).hexdigest()[:16]


def of_image(path: Path) -> str:
    """The pixels of a picture."""
    with Image.open(path) as image:
        return digest(np.asarray(image).tobytes())


def of_weights(path: Path) -> str:
    """Names, dtypes and values of all tensors of a file."""
    parts = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        parts.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        parts.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return parts.hexdigest()[:16]


def of_folder(folder: Path) -> str:
    """Names and bytes of all files."""
    parts = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            parts.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return parts.hexdigest()[:16]


def sanakit(*arguments: str | Path) -> None:
    """Run a command of ours."""
    done = subprocess.run(
        [sys.executable, "-m", "sanakit", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"sanakit {' '.join(map(str, arguments))}:\n{done.stdout}{done.stderr}")


def published_model(folder: Path) -> Path:
    """A small random pipeline, written by diffusers' classes."""
    from diffusers import (
        AutoencoderDC,
        DPMSolverMultistepScheduler,
        SanaPipeline,
        SanaTransformer2DModel,
    )

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(
        str(ROOT / "tests" / "fixtures" / "assets" / "tokenizer")
    )
    shape = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    blocks = ("ResBlock", "ResBlock", "EfficientViTBlock")
    autoencoder = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), (5,)),
        decoder_qkv_multiscales=((), (), (5,)),
        scaling_factor=0.5,
    )
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=8,
        sample_size=16,
        mlp_ratio=2.0,
        patch_size=1,
    )
    torch.nn.init.ones_(transformer.caption_norm.weight)
    SanaPipeline(
        tokenizer,
        Gemma2Model._from_config(shape, attn_implementation="eager"),
        autoencoder,
        transformer,
        DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    ).save_pretrained(folder)
    return folder


def by_command(work: Path, tiny: Path) -> Iterator[tuple[str, str]]:
    """Pictures of `generate` and `again`."""
    apple = work / "apple.png"
    sanakit("generate", PROMPT, "--seed", "1", "-o", apple)
    yield "command: glyph", of_image(apple)
    again = work / "again.png"
    sanakit("again", apple, "-o", again)
    yield "command: again", of_image(again)
    car = work / "car.png"
    sanakit("generate", "a blue car", *("--count", "2", "--steps", "8", "--solver", "flow-unipc"))
    for number in range(2):
        (path,) = Path.cwd().glob(f"out-{number}.png")
        yield f"command: glyph, unipc, picture {number}", of_image(path)
    sanakit("generate", "a blue car", "--model", tiny, "--negative", "red", "-o", car)
    yield "command: published layout", of_image(car)


def by_pipeline(tiny: Path) -> Iterator[tuple[str, str]]:
    """Pictures of the published pipelines, as arrays."""
    import sanakit as ours

    def drawn(pipe: Any, **arguments: Any) -> str:
        generator = torch.Generator().manual_seed(1)
        images = pipe(PROMPT, generator=generator, output_type="np", **arguments).images
        return digest(np.ascontiguousarray(images).tobytes())

    pipe = ours.SanaPipeline.from_pretrained("glyph")
    pag = ours.SanaPAGPipeline.from_pipe(pipe)
    yield "SanaPipeline: glyph", drawn(pipe)
    yield "SanaPipeline: glyph, two pictures", drawn(pipe, num_images_per_prompt=2)
    yield "SanaPAGPipeline: glyph", drawn(pag, num_inference_steps=6)
    pipe = ours.SanaPipeline.from_pretrained(tiny)
    size = {"height": 64, "width": 96, "use_resolution_binning": False}
    yield "SanaPipeline: published", drawn(pipe, **size)
    yield "SanaPipeline: negative prompt", drawn(pipe, negative_prompt="red", **size)
    yield "SanaPipeline: nvlabs", drawn(pipe, compat="nvlabs", **size)
    halved = drawn(
        pipe, callback_on_step_end=lambda p, i, t, k: {"latents": k["latents"] / 2}, **size
    )
    yield "SanaPipeline: callback", halved
    for name in ("UniPCMultistep", "FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete"):
        kind = getattr(ours, f"{name}Scheduler")
        pipe.scheduler = kind.from_config(pipe.scheduler.config)
        yield f"SanaPipeline: {name}", drawn(pipe, num_inference_steps=6, **size)
    pag = ours.SanaPAGPipeline.from_pretrained(tiny, pag_applied_layers="blocks.(0|1)")
    yield "SanaPAGPipeline: published", drawn(pag, num_inference_steps=6, **size)
    embeds = pipe.encode_prompt(PROMPT, negative_prompt="red", complex_human_instruction=["draw: "])
    parts = [part for part in embeds if part is not None]
    yield "encode_prompt", digest(b"".join(part.numpy().tobytes() for part in parts))


def by_training(work: Path) -> Iterator[tuple[str, str]]:
    """A shard set, and what is learned of it."""
    zorb = [sys.executable, "-m", "benchmarks.zorb", work / "zorb"]
    subprocess.run(zorb, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    pictures = work / "set"
    sanakit("data", "build", work / "zorb", "--out", pictures, "--resolution", "256")
    yield "shards", of_folder(pictures / "shards")
    tune = ["train", "diffusion", "--data", pictures, "--from", "glyph"]
    few = ["--set", "batch_size=2", "--set", "log_every=1", "--set", "evaluate_every=10"]
    few += ["--set", "device=cpu", "--set", "pictures_every=1000", "--set", "warmup_images=4"]
    twenty = ["--set", "total_images=40"]
    came = ["--set", "optimizer=came", "--set", "betas=[0.9,0.999,0.9999]"]
    came += ["--set", "compute_dtype=float32"]
    runs = {
        "whole": [*twenty],
        "LoRA": [*twenty, "--lora", "4"],
        "CAME, fp32": [*twenty, *came],
        "averaged": [*twenty, "--set", "average_halflife=10"],
    }
    for name, more in runs.items():
        run = work / f"run-{name.split(',')[0]}"
        sanakit(*tune, *few, *more, "--out", run)
        yield f"training: {name}", exported(run, work / f"model-{name.split(',')[0]}")
    run = work / "run-resumed"
    half = ["--set", "total_images=20", "--set", "schedule=constant"]
    sanakit(*tune, *few, *half, "--out", run)
    sanakit("train", "diffusion", "--resume", "--out", run, *twenty)
    yield "training: resumed", exported(run, work / "model-resumed")
    yield "training: checkpoint", checkpoint(run)
    run = work / "run-autoencoder"
    small = ["--set", "total_images=8", "--set", "batch_size=2", "--set", "device=cpu"]
    small += ["--phase", "decoder", "--from", "glyph"]
    sanakit("train", "autoencoder", "--data", pictures / "shards", "--out", run, *small)
    yield "training: autoencoder", checkpoint(run)


def exported(run: Path, out: Path) -> str:
    """What `train export` writes of a run."""
    sanakit("train", "export", run, "--out", out)
    files = sorted(out.rglob("*.safetensors"))
    return digest("".join(of_weights(path) for path in files).encode())


def checkpoint(run: Path) -> str:
    """Files of the newest checkpoint: their names, and the tensors in them."""
    newest = max((path for path in run.rglob("manifest.json")), key=lambda p: str(p)).parent
    tensors = sorted(newest.rglob("*.safetensors"))
    names = sorted(path.name for path in newest.rglob("*"))
    return digest("".join([*names, *(of_weights(path) for path in tensors)]).encode())


def main(work: Path, parts: list[str]) -> int:
    """Print all digests, or those of some parts, as JSON, one a line."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    os.environ["SANAKIT_CACHE"] = "off"
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    os.chdir(work)
    tiny = published_model(work / "tiny")
    found: dict[str, str] = {}
    known = {
        "command": by_command(work, tiny),
        "pipeline": by_pipeline(tiny),
        "training": by_training(work),
    }
    for part in parts or known:
        for name, value in known[part]:
            print(f"{name}: {value}", file=sys.stderr, flush=True)
            found[name] = value
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), sys.argv[2:]))
