"""Where the command computes and in which numbers, and whether that fits; told before it loads."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sanakit.cli.terminal import processes, say
from sanakit.errors import ConfigError, MissingModelError, OutOfMemory, did_you_mean
from sanakit.files import expanded, read_json

if TYPE_CHECKING:
    import torch
    from torch import nn

    from sanakit.models.config import AutoencoderConfig, TransformerConfig
    from sanakit.weights.catalog import Checkpoint

AUTO = "auto"
DEVICE = "SANAKIT_DEVICE"
KINDS = (AUTO, "cpu", "cuda", "mps", "xpu")
OTHER_NAMES = {"gpu": "cuda", "nvidia": "cuda", "rocm": "cuda", "amd": "cuda", "metal": "mps"}
DTYPES = {
    "float32": "float32",
    "fp32": "float32",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
}
QUANTIZED_PARTS = ("transformer", "text_encoder")
QUANTIZED_BYTES = dict.fromkeys(("bnb-int8", "int8", "fp8", "w8a8", "w8a16"), 1.0)
"""Of a value of a quantized layer; those of four bits have scales too."""
FOUR_BITS = 4.5 / 8
SPARE = 0.8
"""Share of the free memory that weights may take without a word; activations need the rest."""
TOLD_FROM = 1e9
FRUGAL = (
    ("--dtype bfloat16", "bfloat16", None, None),
    ("--quantize int8", "bfloat16", "int8", "torchao"),
    ("--quantize bnb-nf4", "bfloat16", "bnb-nf4", "bitsandbytes"),
)
"""What takes less, the best first: what to write, dtype, quantization, and the library it needs."""

Device = Annotated[
    str,
    typer.Option(
        envvar=DEVICE,
        help="cpu, cuda, cuda:1, mps or xpu. auto: the accelerator there is; the CPU for glyph, "
        "which is as quick there.",
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="float32, bfloat16 or float16. Default: as published on a GPU, else float32."
    ),
]
Quantize = Annotated[
    str | None,
    typer.Option(
        help="w8a8 or w8a16, ours; int8, int4, fp8 (torchao); bnb-int8, bnb-nf4 or bnb-fp4 "
        "(bitsandbytes)."
    ),
]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What was asked for: a device, a dtype, a quantization; checked as far as names go.

    Raises:
        ConfigError: a name that is none.
    """

    device: str = AUTO
    dtype: str | None = None
    quantize: str | None = None

    def __post_init__(self) -> None:
        from sanakit.quant.method import method_of

        kind, colon, index = self.device.partition(":")
        if kind not in KINDS or (colon and not index.isdecimal()):
            other = OTHER_NAMES.get(kind.lower())
            hint = f"it is --device {other}" if other else did_you_mean(self.device, KINDS)
            raise ConfigError(f"{self._asked} is unknown", hint=hint)
        if self.dtype is not None and self.dtype not in DTYPES:
            full = ", ".join(dict.fromkeys(DTYPES.values()))
            raise ConfigError(f"--dtype {self.dtype!r} is unknown", hint=f"one of {full}")
        if self.quantize is not None:
            method_of(self.quantize)

    @property
    def _asked(self) -> str:
        """The device with what named it: the variable, where that says the same."""
        asked = f"{DEVICE}=" if os.environ.get(DEVICE) == self.device else "--device "
        return f"{asked}{self.device!r}"

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """The dtype that was asked for."""
        import torch

        return None if self.dtype is None else getattr(torch, DTYPES[self.dtype])

    def to_json(self) -> dict[str, str]:
        """What of it goes into a picture, so that it is drawn again in the same way."""
        named = {"dtype": self.dtype and DTYPES[self.dtype], "quantize": self.quantize}
        return {key: value for key, value in named.items() if value is not None}

    def place(self, model: str) -> torch.device:
        """The device that a model is to run on.

        Raises:
            ConfigError: it is not there.
        """
        from sanakit.pipeline.placement import accelerator, device_named
        from sanakit.weights.resolve import EMBEDDED

        there = accelerator()
        if self.device == AUTO:
            return device_named("cpu") if model in EMBEDDED else there
        kind = self.device.partition(":")[0]
        if kind not in ("cpu", there.type):
            have = "cpu" if there.type == "cpu" else f"cpu and {there.type}"
            raise ConfigError(f"{self._asked} is not there", hint=f"this machine has {have}")
        return device_named(self.device)


@contextmanager
def together(*networks: nn.Module) -> Iterator[None]:
    """Within the block the processes that torchrun started, if any, compute these together."""
    if processes()[1] == 1:
        yield
        return
    import torch.distributed as dist

    from sanakit.pipeline.sequence_parallel import sequence_parallel

    with sequence_parallel(*networks):
        yield
    dist.destroy_process_group()


def check_memory(
    model: str,
    machine: Machine,
    device: torch.device,
    *,
    parts: tuple[str, ...] = ("transformer", "text_encoder", "vae", "controlnet"),
    branch: Path | None = None,
    size: tuple[int | None, int | None] = (None, None),
    quiet: bool,
) -> None:
    """Say what a model and a picture of ``size``, height and width, need and what is free.

    It is said where that is much. Of a model that is still to be fetched only weights are counted.
    ``branch`` is where a control branch is that takes the place of the model's own.

    Raises:
        OutOfMemory: they cannot fit, with what would.
    """
    from sanakit.weights.catalog import find_checkpoint

    checkpoint = find_checkpoint(model)
    sizes = _sizes(model, checkpoint, parts)
    if not sizes:
        return
    if branch is not None:
        sizes = {**sizes, "controlnet": _counted(branch, None)}
    drawing = _drawing(model, size) if "transformer" in parts else 0
    need = _needed(sizes, machine, device, checkpoint) + drawing
    free = _free(device)
    what = _described(machine, device, checkpoint)
    said = f"{model} needs {need / 1e9:.1f} GB {what}; {free / 1e9:.1f} GB of {device} are free"
    if need > free:
        hint = _frugal(sizes, machine, device, checkpoint, free - drawing)
        raise OutOfMemory(said, hint=hint if drawing < free else "draw a smaller picture")
    if need > SPARE * free:
        less = _frugal(sizes, machine, device, checkpoint, SPARE * free - drawing)
        say(f"note: {said}, which may be too few: {less}", err=True)
    elif need > TOLD_FROM and not quiet:
        say(said, err=True)


def _drawing(model: str, size: tuple[int | None, int | None]) -> int:
    """Bytes that drawing takes at the least, beside weights; nothing where that is not known.

    Two passes' widest activations in 16 bits, or the picture's own bytes with those of its file.
    """
    folder = local_folder(model)
    if folder is None:
        return 0
    transformer, autoencoder = shapes_of(folder)
    factor = autoencoder.spatial_factor
    height, width = (transformer.sample_size * factor if side is None else side for side in size)
    tokens = height * width // (factor * transformer.patch_size) ** 2
    return max(2 * tokens * 4 * transformer.ffn_width * 2, 2 * 3 * height * width)


def shapes_of(folder: Path) -> tuple[TransformerConfig, AutoencoderConfig]:
    """Read what a model's transformer and autoencoder are, before torch is loaded.

    Raises:
        ConfigError: a config that cannot be built. DataError: none that can be read.
    """
    from sanakit.models.config import AutoencoderConfig, TransformerConfig, config_from_dict
    from sanakit.weights.layout import CONFIG, QUANTIZATION

    first, last = (folder / part / CONFIG for part in ("transformer", "vae"))
    one, two = (read_json(path) for path in (first, last))
    for values in (one, two):
        values.pop(QUANTIZATION, None)
    return (
        config_from_dict(TransformerConfig, one, source=str(first)),
        config_from_dict(AutoencoderConfig, two, source=str(last)),
    )


def _free(device: torch.device) -> int:
    import psutil

    from sanakit.pipeline.decoder import free_bytes

    swap = psutil.swap_memory().free if device.type == "cpu" else 0
    return free_bytes(device) + swap


Counts = Mapping[str, tuple[int, int]]
"""By part: numbers in layers that can be quantized, and all others."""


def _sizes(model: str, checkpoint: Checkpoint | None, parts: tuple[str, ...]) -> Counts:
    """Counted in the files of a model, or as its catalogue says; nothing where neither knows."""
    folder = local_folder(model)
    if folder is not None:
        usual = None if checkpoint is None else checkpoint.variant
        return {part: _counted(folder / part, usual) for part in parts}
    if checkpoint is None:
        return {}
    from sanakit.weights.catalog import AUTOENCODER_PARAMETERS, TEXT_ENCODER_PARAMETERS

    known = {
        "transformer": (checkpoint.parameters, 0),
        "text_encoder": (TEXT_ENCODER_PARAMETERS, 0),
        "vae": (0, AUTOENCODER_PARAMETERS),
    }
    return {part: known[part] for part in parts if part in known}


def local_folder(model: str, *, offline: bool = False) -> Path | None:
    """The folder of a model that is on this disk; None where it is still to be fetched.

    Raises:
        MissingModelError: there is no such model.
    """
    from sanakit.weights.catalog import find_checkpoint
    from sanakit.weights.resolve import REPOSITORY, resolve_model

    try:
        return resolve_model(model, offline=True)
    except MissingModelError:
        checkpoint = find_checkpoint(model)
        fetched = checkpoint.loadable if checkpoint else REPOSITORY.fullmatch(model)
        if offline or not fetched or expanded(model).exists():
            raise
        return None


def _counted(folder: Path, usual: str | None) -> tuple[int, int]:
    linear = others = 0
    for name, shape in _shapes(folder, usual):
        count = prod(shape)
        if len(shape) == 2 and name.endswith(".weight") and "embed" not in name:
            linear += count
        else:
            others += count
    return linear, others


def _shapes(folder: Path, usual: str | None) -> Iterator[tuple[str, list[int]]]:
    from safetensors import SafetensorError, safe_open

    from sanakit.untrusted import open_file
    from sanakit.weights.layout import stored_variant, variants_of

    variant = stored_variant(folder, usual)
    for path in sorted(folder.glob("*.safetensors")):
        if variants_of([path.name]) != {variant}:
            continue
        try:
            open_file(path).close()  # a pipe would be waited for
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():  # noqa: SIM118
                    yield name, file.get_slice(name).get_shape()
        except (SafetensorError, OSError):
            continue  # whoever loads it says what is wrong


def _needed(
    sizes: Counts, machine: Machine, device: torch.device, checkpoint: Checkpoint | None
) -> float:
    """Bytes of the device; on a CPU a part is whole in memory before it is quantized."""
    dtypes = _dtypes(machine, device, checkpoint)
    kept = peak = 0.0
    for part, (linear, others) in sizes.items():
        bytes_each = getattr(dtypes, part).itemsize
        packed = bytes_each
        if machine.quantize is not None and part in QUANTIZED_PARTS:
            packed = QUANTIZED_BYTES.get(machine.quantize, FOUR_BITS)
        whole = (linear + others) * bytes_each
        if device.type == "cpu":
            peak = max(peak, kept + whole)
        kept += linear * packed + others * bytes_each
    return max(peak, kept)


def _dtypes(machine: Machine, device: torch.device, checkpoint: Checkpoint | None) -> Any:
    from sanakit.weights.dtypes import resolve_dtypes

    return resolve_dtypes(checkpoint, machine.torch_dtype, device=device)


def _described(machine: Machine, device: torch.device, checkpoint: Checkpoint | None) -> str:
    dtypes = _dtypes(machine, device, checkpoint)
    names = dict.fromkeys(str(getattr(dtypes, part)) for part in (*QUANTIZED_PARTS, "vae"))
    words = " and ".join(name.removeprefix("torch.") for name in names)
    return f"in {words}" + (f" with {machine.quantize}" if machine.quantize else "")


def _frugal(
    sizes: Counts,
    machine: Machine,
    device: torch.device,
    checkpoint: Checkpoint | None,
    free: float,
) -> str:
    """What to write for less memory: the best that fits."""
    for option, dtype, quantize, library in FRUGAL:
        if library is not None and (find_spec(library) is None or {*sizes} == {"vae"}):
            continue
        less = Machine(device=machine.device, dtype=dtype, quantize=quantize)
        need = _needed(sizes, less, device, checkpoint)
        if need <= free:
            return f"{option} needs {need / 1e9:.1f} GB"
    if device.type != "cpu":
        return "--device cpu uses the memory of the machine"
    return "a smaller model needs less: sanakit models list"
