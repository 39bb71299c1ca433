"""The stages of a model on several sides in turn: seconds, memory, and how near to the floor."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch.utils.flop_counter import FlopCounterMode

from sanakit.bench import side
from sanakit.bench.record import product_rate
from sanakit.bench.turns import Served, compared, steps_in_turn
from sanakit.errors import ConfigError, OutOfMemory, did_you_mean
from sanakit.files import check_room, read_json
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.config import (
    AUTOENCODERS,
    TRANSFORMERS,
    AutoencoderConfig,
    TransformerConfig,
    config_from_dict,
)
from sanakit.models.flops import transformer_flops
from sanakit.pipeline.decoder import free_bytes
from sanakit.pipeline.networks import AutoencoderDC, SanaTransformer2DModel
from sanakit.pipeline.published.sana import SanaPipeline
from sanakit.weights.int8_rows import SUFFIX
from sanakit.weights.layout import CONFIG

C = TypeVar("C", TransformerConfig, AutoencoderConfig)
SPREAD = 0.02
"""Standard deviation of random weights."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """Who computes, in which dtype, by which Python."""

    library: str = "sanakit"
    dtype: str = "float32"
    python: str = sys.executable

    def __str__(self) -> str:
        return f"{self.library} {self.dtype}"


@contextmanager
def weights_of(name: str, *, layers: int | None, stages: Sequence[str]) -> Iterator[Path]:
    """Within the block there is a folder of a published shape with random weights.

    Raises:
        ConfigError: an unknown shape. OutOfMemory, DataError: no room for it.
    """
    if name not in TRANSFORMERS:
        raise ConfigError(
            f"{name!r} is neither a model on this disk nor a published shape",
            hint=did_you_mean(name, TRANSFORMERS),
        )
    config = TRANSFORMERS[name]
    if layers is not None:
        config = replace(config, num_layers=layers)
    autoencoder = AUTOENCODERS["tiny" if name == "tiny" else "dc-ae-f32c32-sana-1.0"]
    made = {
        "transformer": (SanaTransformer2DModel, config),
        "vae": (AutoencoderDC, autoencoder),
    }
    with TemporaryDirectory() as scratch:
        for part in {side.MODULES[stage][1] for stage in stages}:
            kind, shape = made[part]
            with torch.device("meta"):
                network: Any = kind(shape)
            need = 4 * sum(p.numel() for p in network.parameters())
            free = free_bytes(torch.device("cpu"))
            if 2 * need > free:
                raise OutOfMemory(
                    f"{name}: a {part} of {need / 1e9:.1f} GB, held twice, is too much for the "
                    f"{free / 1e9:.1f} GB that are free",
                    hint="--layers 4 takes some of its blocks",
                )
            check_room(Path(scratch), need, what=f"random weights of {name}", hint="free some")
            network.to_empty(device="cpu")
            source = torch.Generator().manual_seed(0)
            for each in [*network.parameters(), *network.buffers()]:
                if each.is_floating_point():
                    each.data.normal_(0, SPREAD, generator=source)
            network.save_pretrained(Path(scratch) / part)
            del network
        yield Path(scratch)


@contextmanager
def published(folder: Path) -> Iterator[Path]:
    """Within the block there is a folder of the same weights that peers read, too.

    The embedded model is packed in a way of ours: it is written out in fp32.
    """
    files = [*folder.glob("*/*.safetensors")]
    if not any(name.endswith(SUFFIX) for file in files for name in names_of(file)):
        yield folder
        return
    with TemporaryDirectory() as scratch:
        SanaPipeline.from_pretrained(folder).save_pretrained(scratch)
        yield Path(scratch)


def names_of(file: Path) -> list[str]:
    """Names of the tensors that a file holds."""
    with safe_open(file, framework="pt") as held:
        return list(held.keys())


def drawn(
    folder: Path, size: int, sides: Sequence[Side], *, steps: int, rounds: int
) -> dict[str, Any]:
    """Compare whole pictures: in each round each side is a new process that loads and draws twice.

    Seconds are of importing, loading, the first picture and the next one, and of the first three
    together, which is what a user waits for.
    """
    runs: dict[str, list[dict[str, float]]] = {str(each): [] for each in sides}
    samples: dict[str, list[float]] = {}
    case = {"stage": "drawing", "folder": str(folder), "size": size, "steps": steps}
    for _ in range(rounds):
        for each in sides:
            told = json.dumps({**case, "side": each.library, "dtype": each.dtype})
            server = Served([each.python, str(Path(side.__file__)), told])
            try:
                load, first, following = (server.step() for _ in range(3))
            finally:
                server.close()
            samples[str(each)] = following["sample"]
            run = {"import": server.ready, "load": load["wall"], "first": first["wall"]}
            run["whole"] = sum(run.values())
            run |= {"next": following["wall"], "peak_mb": following["peak"]}
            runs[str(each)].append(run)
    base, reference = runs[str(sides[0])], samples[str(sides[0])]
    found: dict[str, dict[str, float]] = {}
    for name, own in runs.items():
        found[name] = {key: median(run[key] for run in own) for key in own[0]}
        for key in ("whole", "next"):
            ratios = (ours[key] / run[key] for ours, run in zip(base, own, strict=True))
            found[name][f"faster_{key}"] = median(ratios)
        pairs = zip(reference, samples[name], strict=True)
        found[name]["difference"] = max(abs(a - b) for a, b in pairs)
    return {"stage": "drawing", "size": size, "steps": steps, "sides": found}


def shapes(folder: Path) -> tuple[TransformerConfig | None, AutoencoderConfig | None]:
    """Read the shapes of the parts that a folder has."""
    first, last = (folder / part / CONFIG for part in ("transformer", "vae"))
    return (
        _config(TransformerConfig, first) if first.exists() else None,
        _config(AutoencoderConfig, last) if last.exists() else None,
    )


def _config(kind: type[C], path: Path) -> C:
    return config_from_dict(kind, read_json(path), source=str(path))


def measured(
    folder: Path, stage: str, size: int, sides: Sequence[Side], *, rounds: int
) -> dict[str, Any]:
    """Compare the sides of one stage at one size; the first one is what others are held against."""
    transformer, autoencoder = shapes(folder)
    factor = 32 if autoencoder is None else autoencoder.spatial_factor
    step = factor * (1 if transformer is None else transformer.patch_size)
    if size % step:
        raise ConfigError(f"--size {size} is not a multiple of {step}")
    rows = 1 if transformer is None or transformer.guidance_embeds else 2
    case = {"stage": stage, "folder": str(folder), "size": size, "factor": factor, "rows": rows}
    script = str(Path(side.__file__))
    servers = {}
    try:
        for each in sides:
            told = json.dumps({**case, "side": each.library, "dtype": each.dtype})
            servers[str(each)] = Served([each.python, script, told])
        begun = {name: server.first for name, server in servers.items()}
        taken = steps_in_turn(servers, rounds)
    finally:
        for server in servers.values():
            server.close()
    rate = product_rate("float32") or float("nan")
    flops = operations(stage, size, folder, rows)
    found = compared(taken)
    first = next(iter(taken.values()))[0]["sample"]
    scale = max(map(abs, first)) or 1.0
    for name, row in found.items():
        sample = taken[name][0]["sample"]
        row["weights_mb"] = begun[name]["before"]
        row["version"] = begun[name]["version"]
        row["of_the_floor"] = flops / rate / row["seconds"]
        row["difference"] = max(abs(a - b) for a, b in zip(first, sample, strict=True)) / scale
    return {
        "stage": stage,
        "size": size,
        "gflop": flops / 1e9,
        "fp32_gflops": rate / 1e9,
        "floor_seconds": flops / rate,
        "sides": found,
        "asked": [asdict(each) | {"python": Path(each.python).name} for each in sides],
    }


def operations(stage: str, size: int, folder: Path, rows: int) -> int:
    """Floating-point operations of a stage's products, as the published network defines them."""
    transformer, autoencoder = shapes(folder)
    if stage in ("transformer", "step"):
        assert transformer is not None
        factor = 32 if autoencoder is None else autoencoder.spatial_factor
        grid = (size // factor, size // factor)
        whole = transformer_flops(transformer, grid, side.TEXT_TOKENS)
        if stage == "step":  # its projections of the text are made before
            width, depth = transformer.width, transformer.num_layers
            per_token = (transformer.caption_channels + width) * width + depth * 2 * width**2
            whole -= 2 * side.TEXT_TOKENS * per_token
        return rows * whole
    assert autoencoder is not None
    with torch.device("meta"):
        network = Autoencoder(autoencoder)
    place = size // autoencoder.spatial_factor
    given = {
        "decode": torch.empty(1, autoencoder.latent_channels, place, place, device="meta"),
        "encode": torch.empty(1, 3, size, size, device="meta"),
    }[stage]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        getattr(network, stage)(given)
    return counter.get_total_flops()
