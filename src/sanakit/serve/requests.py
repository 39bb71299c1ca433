"""What is asked of the server and what it answers, as values; every shape of wire becomes these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool

from sanakit.errors import ConfigError, did_you_mean
from sanakit.pipeline.aspect_ratios import check_size
from sanakit.pipeline.picture_requests import ControlKind

JobState = Literal["queued", "running", "done", "failed", "cancelled"]
FINISHED: tuple[JobState, ...] = ("done", "failed", "cancelled")
Whole = Annotated[int, Field(strict=True)]
Real = Annotated[float, Field(allow_inf_nan=False, strict=True)]
Picture = Annotated[
    str,
    Field(
        description="A picture file in base64 or as a data: URL, or the sha256:... that was "
        "answered for one before. Nothing is fetched."
    ),
]
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
JOB_ID = r"^[0-9a-f]{32}$"
Name = Annotated[str, Field(pattern=NAME)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EditPicture(_Strict):
    """A picture to begin with: all of it, where a mask is white, or onto a larger canvas."""

    image: Picture
    mask: Picture | None = None
    strength: Annotated[Real, Field(gt=0, le=1)] | None = None
    expand: tuple[Whole, Whole, Whole, Whole] = (0, 0, 0, 0)


class ControlPicture(_Strict):
    """A picture to follow, by the model's control branch."""

    image: Picture
    kind: ControlKind = "none"
    scale: Annotated[Real, Field(ge=0)] = 1.0


class DrawRequest(_Strict):
    """What to draw, in the names of the command's options; None is the model's own default.

    A seed that is left out is drawn at random and answered. The i-th picture has seed ``seed + i``.
    """

    prompt: str
    negative_prompt: str = ""
    seed: Annotated[Whole, Field(ge=0, lt=2**63)] | None = None
    count: Annotated[Whole, Field(ge=1)] = 1
    height: Annotated[Whole, Field(ge=1)] | None = None
    width: Annotated[Whole, Field(ge=1)] | None = None
    num_steps: Annotated[Whole, Field(ge=1, le=1000)] | None = None
    guidance_scale: Annotated[Real, Field(ge=0)] | None = None
    guidance_interval: tuple[Real, Real] = (0.0, 1.0)
    step_cache: Annotated[Real, Field(ge=0)] = 0.0
    solver: str | None = None
    flow_shift: Annotated[Real, Field(gt=0)] | None = None
    lora: tuple[Name, ...] = ()
    edit: EditPicture | None = None
    control: ControlPicture | None = None
    use_resolution_binning: StrictBool = True
    deadline: Annotated[Real, Field(gt=0)] | None = None
    partial_images: Annotated[Whole, Field(ge=0, le=3)] = 0

    def drawing(self) -> dict[str, Any]:
        """Give what decides the pictures, as `GenerateRequest.from_json` takes it."""
        values = self.model_dump(mode="json")
        for name in ("lora", "deadline", "partial_images", "count"):
            del values[name]
        return values


class ImageView(BaseModel):
    """A finished picture of a job."""

    url: str
    seed: int
    width: int
    height: int

    @classmethod
    def of(cls, job: str, place: int, seed: int, width: int, height: int) -> ImageView:
        """Give what is told of a job's picture."""
        url = f"/jobs/{job}/images/{place}"
        return cls(url=url, seed=seed, width=width, height=height)


class JobView(BaseModel):
    """A job as it is answered."""

    id: str
    state: JobState
    position: int | None = Field(description="Jobs before it in the queue; null once it runs.")
    step: int
    steps: int
    eta_seconds: float | None
    request: DrawRequest
    seeds: list[int]
    images: list[ImageView]
    error: str | None
    code: str | None = Field(description="Kind of the error: deadline, worker_lost, ...")
    created_at: float
    finished_at: float | None


def check_model(request: DrawRequest, able: Mapping[str, Any]) -> None:
    """Refuse what a model cannot draw, as far as it is known; ``able`` is empty while it loads.

    Raises:
        ConfigError: naming the value and what works.
    """
    if not able:
        return
    if len(set(request.lora)) < len(request.lora):
        raise ConfigError(f"lora names one twice: {', '.join(request.lora)}"[:200])
    for name in request.lora:
        if name not in able["loras"]:
            none = "the server was started without --lora"
            hint = did_you_mean(name, able["loras"]) if able["loras"] else none
            raise ConfigError(f"lora {name!r} is not here", hint=hint)
    if request.solver is not None and request.solver not in able["solvers"]:
        hint = did_you_mean(request.solver, able["solvers"])
        raise ConfigError(f"solver={request.solver!r} is unknown here", hint=hint)
    if request.control is not None and not able["supports"]["control"]:
        raise ConfigError("control: this model has no control branch", hint="leave it out")
    free = able["any_size"] and request.use_resolution_binning
    for name in ("height", "width"):
        side = getattr(request, name)
        if side is not None:
            check_size(name, side, 1 if free else able["multiple"])
