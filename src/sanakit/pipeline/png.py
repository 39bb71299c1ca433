"""The settings that a picture was drawn with, inside its PNG: written, read, and read of others."""

from __future__ import annotations

import io
import json
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL.PngImagePlugin import PngInfo

from sanakit.errors import ConfigError, DataError
from sanakit.untrusted import parse_json, read_file, shown

LABELS: Mapping[str, tuple[str, Callable[[str], Any]]] = MappingProxyType(
    {
        "Steps": ("num_steps", int),
        "Sampler": ("solver", str),
        "CFG scale": ("guidance_scale", float),
        "Seed": ("seed", int),
        "Model": ("model", str),
        "Model hash": ("model_hash", str),
    }
)
"""Label of the format, key of a request, reader of the value; ``Size`` is two keys, done apart."""

NEGATIVE = "Negative prompt:"
# Bounded, so that no text takes longer than its length.
PAIR = re.compile(r'\s{0,9}([A-Za-z][\w /-]{0,60}):\s*("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)')
SIZE = re.compile(r"(\d{1,6})\s*x\s*(\d{1,6})")


def format_parameters(settings: Mapping[str, Any], *, made_by: str) -> str:
    """Write the settings that the format knows; a key that is absent or None is left out."""
    pairs = [
        f"{label}: {_quoted(settings[key])}"
        for label, (key, _) in LABELS.items()
        if settings.get(key) is not None
    ]
    if settings.get("width") is not None and settings.get("height") is not None:
        place = next((i for i, pair in enumerate(pairs) if pair.startswith("Model")), len(pairs))
        pairs.insert(place, f"Size: {settings['width']}x{settings['height']}")
    pairs.append(f"Version: sanakit {made_by}")
    lines = [str(settings.get("prompt") or "")]
    if settings.get("negative_prompt"):
        lines.append(f"{NEGATIVE} {settings['negative_prompt']}")
    return "\n".join([*lines, ", ".join(pairs)])


def parse_parameters(text: str) -> dict[str, Any]:
    """Read such a text as far as it can be understood; an empty text gives an empty dict."""
    if not text.strip():
        return {}
    lines = text.strip().replace("\r\n", "\n").split("\n")
    # Extensions append lines of their own, so the pairs are not always on the last one.
    starts = [number for number, line in enumerate(lines) if line.lstrip().startswith("Steps:")]
    end = starts[-1] if starts else len(lines)
    negatives = [number for number in range(end) if lines[number].startswith(NEGATIVE)]
    cut = negatives[0] if negatives else end
    negative = "\n".join(lines[cut:end]).removeprefix(NEGATIVE)
    settings: dict[str, Any] = {
        "prompt": "\n".join(lines[:cut]).strip(),
        "negative_prompt": negative.strip(),
    }
    if starts:
        settings |= _parse_pairs(lines[end])
    return settings


def _parse_pairs(line: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for label, value in PAIR.findall(line):
        plain = _unquoted(value.strip())
        if label == "Size" and (match := SIZE.fullmatch(plain)):
            found |= {"width": int(match[1]), "height": int(match[2])}
        elif label in LABELS:
            key, read = LABELS[label]
            try:
                found[key] = read(plain)
            except ValueError:
                continue  # another program's idea of the field: better none than a wrong one
    return found


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if set(text) & set(',:\n"') else text


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value
    try:
        return str(parse_json(value))
    except ValueError:
        return value


KEY = "sanakit"
PARAMETERS = "parameters"
FORMAT = 1
"""Raised when a reader of the last format would misunderstand the next."""
SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXTS = (b"tEXt", b"zTXt", b"iTXt")
LARGEST_TEXT = 1 << 24
"""Bytes of a text, unpacked."""
DAMAGED = (ValueError, IndexError, struct.error, zlib.error)


def encode_png(pixels: NDArray[np.uint8], settings: Mapping[str, Any] | None) -> bytes:
    """Give one picture ``H W 3`` as PNG bytes with ``settings`` inside; same input, same bytes.

    Settings are JSON values under string keys; tuples are read back as lists. Those named in
    :data:`sanakit.pipeline.png.LABELS` also go into the ``parameters`` line. None writes none.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ConfigError(
            f"pixels of shape {pixels.shape}, type {pixels.dtype} are not uint8 H W 3"
        )
    chunks = PngInfo() if settings is None else _chunks_of(settings)
    buffer = io.BytesIO()
    PILImage.fromarray(np.ascontiguousarray(pixels)).save(buffer, "png", pnginfo=chunks)
    return buffer.getvalue()


def _chunks_of(settings: Mapping[str, Any]) -> PngInfo:
    made_by = own_version()
    odd = [key for key in settings if not isinstance(key, str)]
    try:
        content = {"format": FORMAT, "version": made_by, "settings": dict(settings)}
        # ASCII throughout: escapes carry what UTF-8 cannot, such as half a surrogate pair.
        payload = json.dumps(content, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"settings cannot be written as JSON ({error})") from error
    if odd:
        raise ConfigError(f"settings have the key {odd[0]!r}, which is not a string")
    chunks = PngInfo()
    chunks.add_itxt(KEY, payload)  # first, so that a file cut off never passes for a foreign one
    parameters = format_parameters(settings, made_by=made_by)
    # Half a surrogate pair and NUL have no place in PNG text; only this courtesy copy loses them.
    parameters = parameters.encode("utf-8", "replace").decode().replace("\0", " ")
    if parameters.isascii():
        chunks.add_text(PARAMETERS, parameters)
    else:
        chunks.add_itxt(PARAMETERS, parameters)
    return chunks


def read_settings(source: str | Path | bytes) -> dict[str, Any]:
    """Give the settings inside a PNG, from its path or its bytes.

    Ours come back exactly. From a foreign ``parameters`` text come ``prompt`` and
    ``negative_prompt``, and as far as they are there ``num_steps``, ``solver``, ``guidance_scale``,
    ``seed``, ``width``, ``height``, ``model``, ``model_hash``.
    """
    name = "picture" if isinstance(source, bytes) else str(source)
    if isinstance(source, bytes):
        data = source
    else:
        try:
            data = read_file(Path(source))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"{name}: cannot be read ({reason})") from error
    texts = _texts(data, name)
    if KEY in texts:
        return _own_settings(texts[KEY], name)
    foreign = texts.get(PARAMETERS, "")
    if _is_json(foreign):
        raise DataError(
            f"{name}: its {PARAMETERS} are JSON of another program",
            hint="of other programs' settings, only text as Stable Diffusion web UIs write is read",
        )
    settings = parse_parameters(foreign)
    if settings:
        return settings
    others = f" (it has text named {', '.join(sorted(texts)[:5])})" if texts else ""
    raise DataError(
        f"{name}: carries no settings{others}",
        hint="sharing sites and editors strip them: use the file that was generated",
    )


def _is_json(text: str) -> bool:
    """Whether a text is an object or a list; a prompt may begin with a brace, too."""
    if text.lstrip()[:1] not in ("{", "["):
        return False
    try:
        json.loads(text)
    except ValueError:
        return False
    except RecursionError:
        return True
    return True


def _texts(data: bytes, name: str) -> dict[str, str]:
    """Keyword to text; a picture that is cut off after settings of ours still has them.

    Of texts under other keywords only the keyword counts: they are not unpacked.
    """
    if not data.startswith(SIGNATURE):
        raise DataError(
            f"{name}: is not a PNG{_other_format(data)}",
            hint="settings are kept in the PNG that was generated; conversions lose them",
        )
    found: dict[str, str] = {}
    try:
        for kind, content in _chunks(data):
            if kind in TEXTS:
                key = content.partition(b"\0")[0].decode("latin-1")
                if key not in found:  # each is unpacked once, however often it is there
                    found[key] = _text(kind, content) if key in (KEY, PARAMETERS) else ""
                if key == KEY:
                    break
    except DAMAGED as error:
        if not {KEY, PARAMETERS} & set(found):
            raise DataError(
                f"{name}: is cut off or damaged ({error})", hint="copy it again"
            ) from error
    return found


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(SIGNATURE)
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        content = data[at + 8 : at + 8 + length]
        (check,) = struct.unpack_from(">I", data, at + 8 + length)
        if zlib.crc32(kind + content) != check:
            raise ValueError(f"the checksum of its {kind.decode('latin-1')!r} differs")
        yield kind, content
        if kind == b"IEND":
            return
        at += 12 + length
    raise ValueError("its end is missing")


def _text(kind: bytes, content: bytes) -> str:
    """The text of a chunk; ISO 8859-1 but for iTXt, which is UTF-8."""
    rest = content.partition(b"\0")[2]
    packed = kind == b"zTXt"
    if kind == b"iTXt":
        packed, method, rest = bool(rest[0]), rest[1], rest[2:].split(b"\0", 2)[2]
    elif packed:
        method, rest = rest[0], rest[1:]
    if packed:
        if method != 0:
            raise ValueError(f"text is packed by method {method}")
        unpacking = zlib.decompressobj()
        rest = unpacking.decompress(rest, LARGEST_TEXT)
        if not unpacking.eof:
            raise ValueError(f"a text is too large, more than {LARGEST_TEXT} bytes, or cut off")
    return rest.decode("utf-8" if kind == b"iTXt" else "latin-1")


def _other_format(data: bytes) -> str:
    try:
        with warnings.catch_warnings(), PILImage.open(io.BytesIO(data)) as image:
            warnings.simplefilter("ignore")
            return f" but {image.format}"
    except Exception:  # what damaged bytes raise depends on where they are damaged
        return ", or is damaged"


def _own_settings(payload: str, name: str) -> dict[str, Any]:
    try:
        content = parse_json(payload)
        stored, settings = content["format"], content["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{name}: its settings are damaged ({error})", hint="generate the picture again"
        ) from error
    if not isinstance(stored, int) or stored > FORMAT:
        raise DataError(
            f"{name}: written by sanakit {str(content.get('version'))[:20]} in format "
            f"{shown(stored)}; this one reads up to {FORMAT}",
            hint="pip install --upgrade sanakit",
        )
    if not isinstance(settings, dict):
        raise DataError(f"{name}: its settings are damaged (not an object)")
    return settings


def own_version() -> str:
    """The version of sanakit, as pictures tell it."""
    try:
        return version("sanakit")
    except PackageNotFoundError:
        return "unknown"
