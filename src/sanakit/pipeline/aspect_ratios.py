"""Draw at the nearest size that a model was trained at, then cut to what was asked.

Source: diffusers src/diffusers/pipelines/sana/pipeline_sana.py.
"""

from __future__ import annotations

from typing import TypeAlias

from sanakit.errors import ConfigError
from sanakit.untrusted import shown, whole

# (height, width) at 1024 px; the 512 table is exactly half of it.
_AT_1024 = (
    (512, 2048), (512, 1856), (576, 1792), (576, 1728), (576, 1664), (640, 1600), (640, 1536),
    (704, 1472), (704, 1408), (704, 1344), (768, 1344), (768, 1280), (832, 1216), (832, 1152),
    (896, 1152), (896, 1088), (960, 1088), (960, 1024), (1024, 1024), (1024, 960), (1088, 960),
    (1088, 896), (1152, 896), (1152, 832), (1216, 832), (1280, 768), (1344, 768), (1408, 704),
    (1472, 704), (1536, 640), (1600, 640), (1728, 576), (2048, 512),
)  # fmt: skip
# Keys as published: rounded to two digits, so not always the nearest hundredth of the quotient.
_KEYS = (
    0.25, 0.28, 0.32, 0.33, 0.35, 0.4, 0.42, 0.48, 0.5, 0.52, 0.57, 0.6, 0.68, 0.72, 0.78, 0.82,
    0.88, 0.94, 1.0, 1.07, 1.13, 1.21, 1.29, 1.38, 1.46, 1.67, 1.75, 2.0, 2.09, 2.4, 2.5, 3.0, 4.0,
)  # fmt: skip
# Inference has these in the 2048 and 4096 tables only; in 2048 px.
_EXTRA = {
    0.26: (1024, 3968), 0.27: (1024, 3840), 2.89: (3328, 1152), 3.11: (3584, 1152),
    3.62: (3712, 1024), 3.75: (3840, 1024), 3.88: (3968, 1024),
}  # fmt: skip

MOST_PIXELS = 16384
"""Of a side."""
MOST_PICTURES = 10_000
"""Of a request, whose noise is drawn at once."""
LARGEST_SEED = 2**63 - 1


def check_count(count: int, seed: int) -> None:
    """Refuse more pictures than one request draws, and seeds that no generator takes."""
    whole(count, name="count", low=1, high=MOST_PICTURES)
    if not 0 <= seed <= LARGEST_SEED - count:
        raise ConfigError(f"seed={shown(seed)} must be 0 to 2^63 - 1", hint="try --seed 0")


def check_size(name: str, value: int, multiple: int) -> None:
    """Refuse a side that the latent grid cannot hold."""
    if 0 < value <= MOST_PIXELS and value % multiple == 0:
        return
    low = min(max(value // multiple, 1), MOST_PIXELS // multiple) * multiple
    high = min(low + multiple, MOST_PIXELS)
    works = f"{low}" if value < multiple or low == high else f"{low} and {high}"
    what = "from 1" if multiple == 1 else f"a positive multiple of {multiple} up"
    raise ConfigError(
        f"{name}={shown(value)} is not {what} to {MOST_PIXELS}",
        hint=f"nearest that work: {works}",
    )


def check_canvas(name: str, height: int, width: int, most: int) -> None:
    """Refuse a canvas that is larger than any picture; ``name`` says what asked for it."""
    if max(height, width) > MOST_PIXELS or height * width > most:
        raise ConfigError(
            f"{name} makes a canvas of {width} x {height}",
            hint=f"at most {MOST_PIXELS} pixels on a side, and {most} in all",
        )


def check_proportions(name: str, have: tuple[int, int], want: tuple[int, int]) -> None:
    """Refuse what is laid over a picture of other proportions; heights and widths."""
    tall, wide = have[0] * want[1], have[1] * want[0]
    if abs(tall - wide) > max(tall, wide) / 50:
        raise ConfigError(
            f"{name} is {have[1]} x {have[0]}, the picture {want[1]} x {want[0]}",
            hint="give both the same size",
        )


Table: TypeAlias = dict[float, tuple[int, int]]


def published_table(scale: float, *, extra: bool) -> Table:
    """Sizes by the published key of their ratio, ``scale`` times those at 1024 px.

    ``extra`` adds the seven that inference has at 2048 and 4096 px only, and training at all sizes.
    """
    sizes = {
        key: (int(height * scale), int(width * scale))
        for key, (height, width) in zip(_KEYS, _AT_1024, strict=True)
    }
    if extra:
        sizes |= {k: (int(h * scale / 2), int(w * scale / 2)) for k, (h, w) in _EXTRA.items()}
    return dict(sorted(sizes.items()))


TABLES: dict[int, Table] = {
    16: published_table(0.5, extra=False),
    32: published_table(1, extra=False),
    64: published_table(2, extra=True),
    128: published_table(4, extra=True),
}
"""By the ``sample_size`` of the transformer's config; models of other sizes are not binned."""


def nearest_bin(height: int, width: int, table: Table) -> tuple[int, int]:
    """Give the trained size whose ratio is nearest to ``height / width``."""
    ratio = height / width
    return table[min(table, key=lambda key: abs(key - ratio))]


def nearest_size(height: int, width: int, side: int, multiple: int) -> tuple[int, int]:
    """Give a size of about these proportions and the area of a square, in whole multiples."""
    scale, most = side / (height * width) ** 0.5, max(1, side**2 // multiple**2)
    high, wide = (min(max(1, round(length * scale / multiple)), most) for length in (height, width))
    return high * multiple, wide * multiple
