"""Latents become pixels within the memory that is free; if nothing fits, they become a file."""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import safe_open
from torch import Tensor

from sanakit.errors import DataError, OutOfMemory, WeightsError
from sanakit.files import sha256_of
from sanakit.models.autoencoder import Autoencoder
from sanakit.models.parts import decodes_as_built
from sanakit.models.tiling import Tiling, tiled_bytes, whole_bytes
from sanakit.nn.ways import is_unhooked
from sanakit.pipeline.pixels import Pixels, cut_to, to_pixels
from sanakit.shapes import Image, Latent
from sanakit.untrusted import check_fields, parse_json, shown_text
from sanakit.weights.store import read_tensors, write_tensors

if sys.platform != "win32":
    import resource

CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int:
    """Bytes that may still be had; on the CPU the least of machine, container and process limit."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + kept)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return max(0, min(psutil.virtual_memory().available, _process_room(), *_container_rooms()))


def _process_room() -> int:
    """What is left under ``ulimit -v``."""
    if sys.platform == "win32":
        return sys.maxsize
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return sys.maxsize
    return int(limit - psutil.Process().memory_info().vms)


def _container_rooms() -> list[int]:
    """What every enclosing control group leaves; pages of files are given back on demand."""
    rooms = []
    for folder, limit, used in _groups():
        try:
            most = (folder / limit).read_text().strip()
            if most != "max":
                taken = int((folder / used).read_text())
                rooms.append(int(most) - taken + _file_pages(folder))
        except (OSError, ValueError):
            continue
    return rooms


def _groups() -> list[tuple[Path, str, str]]:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds not in ("", "memory"):
            continue
        names = ("memory.max", "memory.current")
        if kinds:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        root = CGROUP / kinds
        inside = root / path.lstrip("/")
        # Inside a container the path may be the host's, and only the root is there.
        places = [place for place in (inside, *inside.parents) if root in place.parents]
        found += [(place, *names) for place in (*places, root)]
    return found


def _file_pages(folder: Path) -> int:
    for line in (folder / "memory.stat").read_text().splitlines():
        if line.startswith("inactive_file "):
            return int(line.split()[1])
    return 0


KEY = "sanakit_latents"
NAME = "latents"
FORMAT = 1
"""Raised when a reader of the last format would misunderstand the next."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where latents come from: the model, and the settings of each picture where known."""

    model: str | None = None
    model_hash: str = ""
    settings: tuple[Mapping[str, Any], ...] = field(default=())

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width that were asked for, where the settings tell: pictures are cut to it."""
        first = self.settings[0] if self.settings else {}
        height, width = first.get("height"), first.get("width")
        return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def write_latents(path: Path, latent: Latent, origin: Origin) -> None:
    """Write scaled latents ``b c h w`` in fp32, whole or not at all."""
    content = {
        "format": FORMAT,
        "model": origin.model,
        "model_hash": origin.model_hash,
        "settings": [dict(one) for one in origin.settings],
    }
    # As text where JSON has no word for a value: a lost note must not lose the latents.
    notes = json.dumps(content, default=str)
    write_tensors(path, {NAME: latent.detach().float()}, {KEY: notes})


def rescue_latents(latent: Latent, origin: Origin) -> Path | None:
    """Write latents to the working folder, else to the temporary one; None where neither takes it.

    The name is made of the content, so that nothing of another is overwritten.
    """
    content = latent.detach().float().cpu().contiguous()
    digest = sha256_of(content.numpy().tobytes())[:12]
    for folder in (Path.cwd(), Path(tempfile.gettempdir())):
        path = folder / f"latents-{digest}.safetensors"
        try:
            write_latents(path, content, origin)
        except DataError:
            continue
        return path
    return None


def read_latents(path: str | Path) -> tuple[Latent, Origin]:
    """Give what :func:`write_latents` wrote, or the one ``b c h w`` tensor of a foreign file."""
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        raise DataError(
            f"{path}: is a folder",
            hint=f"name the file of latents in it: {files[0]}"
            if files
            else "name the safetensors file of latents; a decode that ran out of memory tells it",
        )
    if not path.is_file():
        raise DataError(f"{path}: no such file", hint="a decode that ran out of memory names it")
    tensors = read_tensors(path)
    name = NAME if NAME in tensors else next(iter(tensors), None)
    if name is None or (name != NAME and len(tensors) != 1) or tensors[name].ndim != 4:
        held = ", ".join(f"{key} {tuple(value.shape)}" for key, value in tensors.items())
        raise DataError(
            f"{path}: holds no latents b c h w, but {held or 'nothing'}",
            hint=f"store scaled latents under the name {NAME!r}",
        )
    latent = tensors[name]
    if not latent.numel():
        raise DataError(f"{path}: its latents are {tuple(latent.shape)}: nothing to decode")
    if latent.dtype.itemsize == 1:
        raise DataError(
            f"{path}: its latents are {latent.dtype}", hint="store them as float32 or bfloat16"
        )
    if not latent.is_floating_point() or not torch.isfinite(latent).all():
        raise DataError(f"{path}: its latents are not finite numbers", hint="draw them again")
    return latent.float(), _origin(path)


def _origin(path: Path) -> Origin:
    with safe_open(path, framework="pt") as file:
        notes = (file.metadata() or {}).get(KEY)
    if notes is None:
        return Origin()
    try:
        content = parse_json(notes)
        stored = content["format"]
        origin = Origin(
            model=content["model"],
            model_hash=content["model_hash"],
            settings=tuple(dict(one) for one in content["settings"]),
        )
        check_fields(origin)
    except (ValueError, KeyError, TypeError) as error:
        reason = shown_text(str(error))
        raise WeightsError(f"{path}: its notes are damaged ({reason})") from error
    if not isinstance(stored, int) or stored > FORMAT:
        raise DataError(
            f"{path}: latents of format {stored!r}; this one reads up to {FORMAT}",
            hint="pip install --upgrade sanakit",
        )
    return origin


STRIPES = (512, 256, 128, 64)
"""Heights in pixels of the exact stripes that are tried, widest first."""
SMALLEST = 256
"""Side of the exact tiles that come after them."""
BLENDED = (384, 256)
"""Side and stride of the tiles of the last way, which alone is not exact."""
SAFE_SHARE = 0.85
"""Of the free memory; the rest is for what others take meanwhile and for fragmentation."""
HEAP = 512 << 20
"""Most that allocator and convolutions took beside the estimate; benchmarks/decoding.py."""
BAND = 256
"""Rows that are converted at a time."""
# What runtimes say where they have no error type of their own for it.
OUT_OF_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "could not create a memory",
    "could not create a primitive",
)

Convert = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to decode; without ``tiling`` a picture is decoded whole."""

    tiling: Tiling | None = None
    at_once: int = 1
    """Pictures in one pass."""

    def __str__(self) -> str:
        if self.tiling is None:
            return "whole" if self.at_once == 1 else f"{self.at_once} pictures whole"
        tall, wide = self.tiling.stride(1 << 30, 1 << 30)
        if not self.tiling.exact:
            return f"blended tiles of {self.tiling.tile_sample_min_height} px"
        return f"stripes of {tall} px" if wide == 1 << 30 else f"tiles of {tall} x {wide} px"

    def peak_bytes(self, autoencoder: Autoencoder, raw: Tensor) -> int:
        """Estimate of what decoding takes at once, beside the finished pictures."""
        factor, steps = autoencoder.config.spatial_factor, autoencoder.decoder.steps()
        one = torch.empty(self.at_once, *raw.shape[1:], dtype=raw.dtype, device="meta")
        unhooked = all(map(is_unhooked, autoencoder.decoder.modules()))
        frugal = raw.device.type == "cpu" and unhooked
        if self.tiling is None:
            return whole_bytes(steps, one, frugal=frugal)
        if self.tiling.exact:
            return tiled_bytes(steps, one, self.tiling, frugal=frugal)
        high, wide = self.tiling.minimum(factor)
        pixels = 4 * autoencoder.config.in_channels * factor**2 * one[0, 0].numel()
        return pixels + whole_bytes(steps, one[:, :, :high, :wide], frugal=frugal)


def ways_to_decode(autoencoder: Autoencoder, latent: Latent) -> list[tuple[Way, int]]:
    """Ways for latents of that shape with their peaks in bytes, the fastest first.

    Tiling and slicing that the user enabled leave out what is less frugal than they are, and
    every way is more frugal, by its estimate, than all before it.
    """
    ways, least = [], float("inf")
    for way in _candidates(autoencoder, latent):
        peak = way.peak_bytes(autoencoder, latent)
        if peak < least:
            ways.append((way, peak))
            least = peak
    return ways


def _candidates(autoencoder: Autoencoder, latent: Latent) -> list[Way]:
    factor = autoencoder.config.spatial_factor
    size = latent.shape[-2] * factor, latent.shape[-1] * factor
    smaller = [Tiling.rows(height) for height in STRIPES]
    smaller += [Tiling.squares(SMALLEST // 4, SMALLEST)]
    side, stride = (max(1, length // factor) * factor for length in BLENDED)
    smaller += [Tiling(side, side, stride, stride, exact=False)]
    smaller = [tiling for tiling in smaller if tiling.cuts(*size)]
    wanted = autoencoder.tiling
    if wanted is not None and wanted.cuts(*size):
        area = _area(wanted, size)
        return [Way(tiling=wanted)] + [
            Way(tiling=tiling)
            for tiling in smaller
            if tiling != wanted and (not tiling.exact or _area(tiling, size) < area)
        ]
    whole = [Way()] if autoencoder.slicing or len(latent) < 2 else [Way(at_once=len(latent)), Way()]
    return whole + [Way(tiling=tiling) for tiling in smaller]


def first_to_try(peaks: Sequence[int], free: int) -> int:
    """Index of the first way whose peak fits safely; where none does, the last one."""
    fitting = (i for i, peak in enumerate(peaks) if with_overhead(peak) <= SAFE_SHARE * free)
    return next(fitting, len(peaks) - 1)


def with_overhead(peak: int) -> int:
    """What a process takes for an estimated peak at most, as far as measured."""
    return peak + min(4 * peak, HEAP)


def decode_image(autoencoder: Autoencoder, latent: Latent, origin: Origin | None = None) -> Image:
    """Scaled latents to pictures, fp32 on the autoencoder's device, about [-1, 1].

    Args:
        autoencoder: whose enabled slicing and tiling are kept to.
        latent: scaled, ``b c h w``.
        origin: what to note with latents that are saved as the last resort; None saves nothing.
    """
    device = next(autoencoder.parameters()).device

    def empty(count: int, height: int, width: int) -> Tensor:
        return torch.empty(count, 3, height, width, device=device)

    return _decode(autoencoder, latent, origin, empty, lambda values: values.float())


def decode_pixels(
    autoencoder: Autoencoder,
    latent: Latent,
    origin: Origin | None = None,
    *,
    size: tuple[int, int] | None = None,
) -> Pixels:
    """The same as ``b H W 3`` uint8 in host memory, converted as the parts come.

    Where ``size`` is another than that of the latents, pictures are cut to it as a whole.
    """
    factor = autoencoder.config.spatial_factor
    if size is not None and size != tuple(side * factor for side in latent.shape[-2:]):
        image = cut_to(decode_image(autoencoder, latent, origin), *size)
        return to_pixels(image, component="autoencoder while decoding")

    def empty(count: int, height: int, width: int) -> Tensor:
        return torch.empty(count, height, width, 3, dtype=torch.uint8).permute(0, 3, 1, 2)

    def convert(values: Tensor) -> Tensor:
        pixels = to_pixels(values, component="autoencoder while decoding")
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    out = _decode(autoencoder, latent, origin, empty, convert)
    return out.permute(0, 2, 3, 1).numpy()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a runtime ran out of memory, by type or, where it has none for it, by its words."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in said for words in OUT_OF_MEMORY)


@torch.no_grad()
def _decode(
    autoencoder: Autoencoder,
    latent: Latent,
    origin: Origin | None,
    empty: Callable[[int, int, int], Tensor],
    convert: Convert,
) -> Tensor:
    weight = next(autoencoder.parameters())
    factor = autoencoder.config.spatial_factor
    last = ""
    try:
        raw = latent.to(device=weight.device, dtype=weight.dtype)
        raw = raw / autoencoder.config.scaling_factor
        if not decodes_as_built(autoencoder):
            return convert(autoencoder.decode(raw, return_dict=False)[0])
        out = empty(len(raw), raw.shape[-2] * factor, raw.shape[-1] * factor)
        ways = ways_to_decode(autoencoder, raw)
        first = first_to_try([peak for _, peak in ways], free_bytes(weight.device))
        for way, _ in ways[first:]:
            try:
                _fill(out, way, autoencoder, raw, convert)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            else:
                return out
            # Outside the handler, where the failed attempt is no longer held by its traceback.
            _give_back(weight.device)
            last = f", down to {way}"
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    _give_back(weight.device)
    raise _exhausted(latent, origin, factor, last)


def _fill(out: Tensor, way: Way, autoencoder: Autoencoder, raw: Tensor, convert: Convert) -> None:
    for start in range(0, len(raw), way.at_once):
        some = slice(start, start + way.at_once)
        for top, left, values in _parts(way, autoencoder, raw[some]):
            wide = slice(left, left + values.shape[-1])
            for band in range(0, values.shape[-2], BAND):
                part = convert(values[:, :, band : band + BAND])
                high = slice(top + band, top + band + part.shape[-2])
                out[some, :, high, wide] = part


def _parts(way: Way, autoencoder: Autoencoder, raw: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Top, left and values of every finished part."""
    if way.tiling is None:
        yield 0, 0, autoencoder.decoder(raw)
    elif way.tiling.exact:
        for tile in autoencoder.decode_tiles(raw, way.tiling):
            yield tile.rows.start, tile.columns.start, tile.values
    else:
        if way.tiling != autoencoder.tiling:
            told = f"memory is short: decoding in {way}, whose tones may differ by a shade"
            warnings.warn(told, stacklevel=2)
        yield 0, 0, autoencoder.decode_blended(raw, way.tiling)


def _exhausted(latent: Latent, origin: Origin | None, factor: int, last: str) -> OutOfMemory:
    height, width = (side * factor for side in latent.shape[-2:])
    told = f"not enough memory to decode {height} x {width} px{last}"
    if origin is None:
        return OutOfMemory(told, hint="free memory and try again")
    path = rescue_latents(latent, origin)
    if path is None:
        return OutOfMemory(
            f"{told}; the latents could not be saved", hint="free memory and disk, draw again"
        )
    model = "" if origin.model else " --model MODEL"
    return OutOfMemory(
        f"{told}; nothing is lost: the finished latents are in {path}",
        hint=f"free memory, then: sanakit decode {path} -o out.png{model}",
        latents=path,
    )


def _give_back(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def _area(tiling: Tiling, size: tuple[int, int]) -> int:
    height, width = tiling.stride(*size) if tiling.exact else tiling.minimum(1)
    return height * width
