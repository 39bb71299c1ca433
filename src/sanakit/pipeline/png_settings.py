"""A picture that carries how it was made: PNG bytes with all settings inside, and back.

Two text chunks are written. ``sanakit`` is JSON, complete and exact. ``parameters`` is what the
AUTOMATIC1111 web interface writes and many galleries show; it is read where ours is absent.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL.PngImagePlugin import PngInfo

from sanakit.errors import ConfigError, DataError
from sanakit.pipeline.a1111 import format_parameters, parse_parameters
from sanakit.pipeline.png_text import read_texts
from sanakit.weights.atomic import write_atomically

KEY = "sanakit"
PARAMETERS = "parameters"
FORMAT = 1
"""Raised when a reader of the last format would misunderstand the next."""


def encode_png(pixels: NDArray[np.uint8], settings: Mapping[str, Any]) -> bytes:
    """Give one picture ``H W 3`` as PNG bytes with ``settings`` inside; same input, same bytes.

    Settings are JSON values under string keys; tuples are read back as lists. Those named in
    :data:`sanakit.pipeline.a1111.LABELS` also go into the ``parameters`` line.

    Raises:
        ConfigError: pixels of another shape or type, or a setting that JSON cannot carry.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ConfigError(
            f"pixels of shape {pixels.shape}, type {pixels.dtype} are not uint8 H W 3"
        )
    made_by = _version()
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
    buffer = io.BytesIO()
    PILImage.fromarray(np.ascontiguousarray(pixels)).save(buffer, "png", pnginfo=chunks)
    return buffer.getvalue()


def write_png(path: str | Path, pixels: NDArray[np.uint8], settings: Mapping[str, Any]) -> None:
    """Write one picture with its settings, whole or not at all; an existing file is replaced.

    Raises:
        ConfigError: as :func:`encode_png`. DataError: the folder is missing or the disk refuses.
    """
    write_atomically(path, encode_png(pixels, settings))


def read_settings(source: str | Path | bytes) -> dict[str, Any]:
    """Give the settings inside a PNG, from its path or its bytes.

    Ours come back exactly. From a foreign ``parameters`` text come ``prompt`` and
    ``negative_prompt``, and as far as they are there ``num_steps``, ``solver``, ``guidance_scale``,
    ``seed``, ``width``, ``height``, ``model``, ``model_hash``.

    Raises:
        DataError: no such file, not a PNG, no settings, broken JSON, or a newer format.
    """
    name = "picture" if isinstance(source, bytes) else str(source)
    if isinstance(source, bytes):
        data = source
    else:
        try:
            data = Path(source).read_bytes()
        except OSError as error:
            raise DataError(f"{name}: cannot be read ({error.strerror or error})") from error
    texts = read_texts(data, source=name)
    if KEY in texts:
        return _own_settings(texts[KEY], name)
    settings = parse_parameters(texts.get(PARAMETERS, ""))
    if settings:
        return settings
    others = f" (it has text named {', '.join(sorted(texts)[:5])})" if texts else ""
    raise DataError(
        f"{name}: carries no settings{others}",
        hint="sharing sites and editors strip them: use the file that was generated",
    )


def _own_settings(payload: str, name: str) -> dict[str, Any]:
    try:
        content = json.loads(payload)
        stored, settings = content["format"], content["settings"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{name}: its settings are damaged ({error})", hint="generate the picture again"
        ) from error
    if not isinstance(stored, int) or stored > FORMAT:
        raise DataError(
            f"{name}: written by sanakit {content.get('version')} in format {stored}; "
            f"this one reads up to {FORMAT}",
            hint="pip install --upgrade sanakit",
        )
    if not isinstance(settings, dict):
        raise DataError(f"{name}: its settings are damaged (not an object)")
    return settings


def _version() -> str:
    try:
        return version("sanakit")
    except PackageNotFoundError:
        return "unknown"
