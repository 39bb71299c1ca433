"""What a user asks for and what comes back, as values; both go to JSON and return unchanged."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sanakit.errors import ConfigError
from sanakit.flow.guidance import Guidance
from sanakit.pipeline.schedulers import scheduler_named

MOST_PIXELS = 16384
LARGEST_SEED = 2**63 - 1
Pixels = npt.NDArray[np.uint8]


def check_size(name: str, value: int, multiple: int) -> None:
    """Refuse a side that the latent grid cannot hold.

    Raises:
        ConfigError: naming the two nearest sides that work.
    """
    if 0 < value <= MOST_PIXELS and value % multiple == 0:
        return
    low = min(max(value // multiple, 1), MOST_PIXELS // multiple) * multiple
    high = min(low + multiple, MOST_PIXELS)
    works = f"{low}" if value < multiple or low == high else f"{low} and {high}"
    raise ConfigError(
        f"{name}={value} is not a positive multiple of {multiple} up to {MOST_PIXELS}",
        hint=f"nearest that work: {works}",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateRequest:
    """One prompt and everything that decides its pictures; None means the model's own default.

    ``count`` pictures are drawn, the i-th with seed ``seed + i``: each is the picture that its seed
    draws alone.
    """

    prompt: str
    negative_prompt: str = ""
    seed: int = 0
    count: int = 1
    height: int | None = None
    width: int | None = None
    num_steps: int = 20
    guidance_scale: float | None = None
    pag_scale: float = 0.0
    pag_layers: tuple[int, ...] = (0,)
    sigma_interval: tuple[float, float] = (0.0, 1.0)
    solver: str | None = None
    flow_shift: float | None = None

    def __post_init__(self) -> None:
        for name in ("seed", "count", "num_steps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ConfigError(f"{name}={value!r} must be a whole number")
        if self.num_steps < 1 or self.num_steps > 1000:
            raise ConfigError(f"num_steps={self.num_steps} must be 1 to 1000", hint="20 is usual")
        if self.count < 1:
            raise ConfigError(f"count={self.count} must be at least 1")
        if not 0 <= self.seed <= LARGEST_SEED - self.count:
            raise ConfigError(f"seed={self.seed} must be 0 to 2^63 - 1", hint="try --seed 0")
        if self.solver is not None:
            scheduler_named(self.solver, 1.0)
        if self.flow_shift is not None and not self.flow_shift > 0:
            raise ConfigError(
                f"flow_shift={self.flow_shift} must be positive", hint="1 is no shift"
            )
        for name in ("height", "width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(
                    f"{name}={value} must be positive", hint="leave it out for the default"
                )
        self.guidance(1.0)

    def guidance(self, default_scale: float) -> Guidance:
        """Give the guidance as a value; ``default_scale`` stands in where none was asked for."""
        scale = default_scale if self.guidance_scale is None else self.guidance_scale
        return Guidance(
            guidance_scale=scale, pag_scale=self.pag_scale, sigma_interval=self.sigma_interval
        )

    def to_json(self) -> dict[str, Any]:
        """Give all fields as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> GenerateRequest:
        """Undo :meth:`to_json`.

        Raises:
            ConfigError: for an unknown key, a missing prompt or a value out of range.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values.keys() - set(known):
            near = difflib.get_close_matches(key, known, n=1)
            raise ConfigError(
                f"{key!r} is no setting of a request",
                hint=f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}",
            )
        if "prompt" not in values:
            raise ConfigError("a request needs a prompt", hint='an empty one is ""')
        frozen: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**frozen)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One drawn picture: ``H W 3`` uint8, and all it takes to draw it again."""

    pixels: Pixels
    settings: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class GenerateResult:
    """The pictures of a request in seed order, and where the time went.

    ``seconds`` has the stages ``text``, ``denoise`` and ``decode``.
    """

    pictures: tuple[Picture, ...]
    seconds: dict[str, float]
