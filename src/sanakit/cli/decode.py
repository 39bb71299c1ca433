"""`sanakit decode`: finished latents become pictures, where memory did not suffice before."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sanakit.cli.errors import friendly_errors
from sanakit.cli.generate import STANDARD_OUTPUT, output_paths, peak_memory_mb
from sanakit.errors import ConfigError

if TYPE_CHECKING:
    from sanakit.pipeline.decoder import Origin

DTYPES = ("float32", "bfloat16")


def decode(
    latents: Annotated[Path, typer.Argument(help="Safetensors file with finished latents.")],
    out: Annotated[
        str, typer.Option("--out", "-o", help="PNG file to write; - is standard output.")
    ] = "out.png",
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Default: the model named in the file.")
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(help="Side in pixels of exact tiles. Default: chosen by free memory."),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="float32, or bfloat16 for half the memory.")
    ] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda or mps.")] = "cpu",
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing.")] = False,
) -> None:
    """Turn latents that ran out of memory into the picture they would have been."""
    with friendly_errors():
        if dtype not in DTYPES:
            raise ConfigError(f"--dtype {dtype!r} is unknown", hint=f"one of {', '.join(DTYPES)}")
        if tile is not None and tile < 1:
            raise ConfigError(f"--tile {tile} must be at least 1 pixel", hint="512 is usual")
        from sanakit.pipeline.decoder import read_latents

        latent, origin = read_latents(latents)
        name = model or origin.model
        if name is None:
            raise ConfigError(f"{latents}: does not say its model", hint="name one with --model")
        paths = output_paths(out, len(latent), 0)
        report = _run(latent, origin, name, paths, tile=tile, dtype=dtype, device=device)
        if json_:
            print(json.dumps(report), file=sys.stderr if out == STANDARD_OUTPUT else sys.stdout)
        elif not quiet:
            for file in report["files"]:
                print(file, file=sys.stderr if file == STANDARD_OUTPUT else sys.stdout)
            print(f"{report['seconds']['total']:.2f} s in all", file=sys.stderr)


def _run(
    latent: Any,
    origin: Origin,
    model: str,
    paths: list[Path | None],
    *,
    tile: int | None,
    dtype: str,
    device: str,
) -> dict[str, Any]:
    import torch

    from sanakit.files import write_atomically
    from sanakit.pipeline.components import fingerprint
    from sanakit.pipeline.decoder import decode_pixels
    from sanakit.pipeline.networks import AutoencoderDC
    from sanakit.pipeline.png import encode_png
    from sanakit.weights.resolve import resolve_model

    started = time.perf_counter()
    where = _device(device)
    autoencoder = AutoencoderDC.from_pretrained(
        model, subfolder="vae", torch_dtype=getattr(torch, dtype), device_map=where
    )
    wanted = autoencoder.config.latent_channels
    if latent.shape[1] != wanted:
        raise ConfigError(
            f"the latents have {latent.shape[1]} channels, the autoencoder of {model!r} {wanted}",
            hint="name the model that drew them with --model",
        )
    if origin.model_hash and fingerprint(resolve_model(model)) != origin.model_hash:
        note = f"note: the weights of {model!r} are not those that drew it; the picture may differ"
        print(note, file=sys.stderr)
    if tile is not None:
        autoencoder.enable_tiling(tile, tile, tile, tile)
    loaded = time.perf_counter()
    pixels = decode_pixels(autoencoder, latent)
    decoded = time.perf_counter()
    for number, (picture, path) in enumerate(zip(pixels, paths, strict=True)):
        known = number < len(origin.settings)
        data = encode_png(picture, origin.settings[number] if known else {"model": model})
        if path is None:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        else:
            write_atomically(path, data)
    seconds = {"load": loaded - started, "decode": decoded - loaded}
    seconds["total"] = time.perf_counter() - started
    return {
        "files": [STANDARD_OUTPUT if path is None else str(path) for path in paths],
        "model": model,
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        "peak_memory_mb": peak_memory_mb(),
    }


def _device(name: str) -> Any:
    import torch

    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    kind = name.split(":")[0]
    if not there.get(kind, False):
        raise ConfigError(
            f"--device {name!r} is not there",
            hint=f"this machine has {', '.join(k for k, v in there.items() if v)}",
        )
    return torch.device(name)
