"""The ``parameters`` text of the AUTOMATIC1111 web interface, written and read.

A prompt, which may have several lines; ``Negative prompt: ...``, which may too; one line of
``Label: value`` pairs that starts with ``Steps``. The format has no escape for a prompt that looks
like its other parts, so it is a courtesy and no round trip.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

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
PAIR = re.compile(r'\s*([A-Za-z][\w /-]*):\s*("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)')
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
        return str(json.loads(value))
    except ValueError:
        return value
