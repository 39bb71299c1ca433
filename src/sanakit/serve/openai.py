"""The shape of OpenAI's images API: generations, edits, models; streams of previews and pictures.

What has no meaning here is taken at its default and refused otherwise, with what to write instead.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from sanakit.serve.answers import STILL_HERE, PictureStream, drawn, failure, submitted, with_silence
from sanakit.serve.limits import let_go
from sanakit.serve.pictures import decoding, in_base64, mask_of_alpha, picture_bytes
from sanakit.serve.refusals import Refused, refusal_of
from sanakit.serve.requests import EditPicture, Real, Whole

if TYPE_CHECKING:
    from sanakit.serve.job import Job
    from sanakit.serve.jobs import JobService
    from sanakit.serve.settings import ServeSettings

SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")
BLOCK = 32
"""Pixels of a side of what one latent position decodes to."""
Format = Literal["png", "jpeg", "webp"]
TAKEN: dict[str, tuple[tuple[str, ...], str]] = {
    "background": (("auto", "opaque"), "pictures are drawn without transparency"),
    "moderation": (("auto",), "the server's own rules hold for all"),
    "quality": (("auto", "standard"), "say steps instead"),
    "style": (("vivid",), "say it in the prompt instead"),
    "input_fidelity": (("low",), "say strength instead: lower keeps more of the picture"),
}
"""Parameters without a meaning here: what they may be, and what to do instead."""
NAMES = {
    "count": "n",
    "width": "size",
    "height": "size",
    "num_steps": "steps",
    "guidance_scale": "guidance",
}
"""This shape's names for parameters of ours."""
PICTURES = ("image", "image[]")
ALIASES = {
    "steps": ("steps", "num_inference_steps"),
    "guidance": ("guidance", "guidance_scale", "cfg_scale"),
}


class Generation(BaseModel):
    """The body of a generation; a seed that is left out is drawn at random and answered."""

    model_config = ConfigDict(extra="forbid")

    prompt: str
    model: str | None = None
    n: Annotated[Whole, Field(ge=1)] | None = None
    size: str | None = Field(None, description='"auto" or WIDTHxHEIGHT')
    response_format: Literal["b64_json", "url"] = "b64_json"
    output_format: Format = "png"
    output_compression: Annotated[Whole, Field(ge=0, le=100)] | None = None
    stream: Annotated[bool, Field(strict=True)] | None = None
    partial_images: Annotated[Whole, Field(ge=0, le=3)] | None = None
    seed: Annotated[Whole, Field(ge=0, lt=2**63)] | None = None
    steps: Annotated[Whole, Field(ge=1)] | None = None
    num_inference_steps: Annotated[Whole, Field(ge=1)] | None = None
    guidance: Annotated[Real, Field(ge=0)] | None = None
    guidance_scale: Annotated[Real, Field(ge=0)] | None = None
    cfg_scale: Annotated[Real, Field(ge=0)] | None = None
    negative_prompt: str | None = None
    background: str | None = None
    moderation: str | None = None
    quality: str | None = None
    style: str | None = None
    user: str | None = Field(None, max_length=512)

    @model_validator(mode="after")
    def _one_meaning(self) -> Generation:
        for name, (taken, instead) in TAKEN.items():
            value = getattr(self, name, None)
            if value is not None and value not in taken:
                raise ValueError(f"{name}={value[:40]!r} has no meaning here: {instead}")
        for names in ALIASES.values():
            if len({getattr(self, name) for name in names} - {None}) > 1:
                raise ValueError(f"{' and '.join(names)} are one setting, and differ")
        if self.output_format == "png" and self.output_compression not in (None, 100):
            raise ValueError("output_compression is of jpeg and webp; png loses nothing")
        if self.partial_images and not self.stream:
            raise ValueError("partial_images come in a stream: say stream=true")
        if self.stream and self.response_format == "url":
            raise ValueError("a stream carries the pictures themselves: response_format=b64_json")
        return self

    def said(self, meaning: str) -> Any:
        """Give the value of a setting that has several names."""
        return next(
            (value for name in ALIASES[meaning] if (value := getattr(self, name)) is not None), None
        )

    def request(self, edit: EditPicture | None = None) -> dict[str, Any]:
        """Give this as what a `DrawRequest` is built of.

        Raises:
            Refused: 400, a size that is none.
        """
        width, height = size_of(self.size)
        return {
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt or "",
            "seed": self.seed,
            "count": self.n or 1,
            "height": height,
            "width": width,
            "num_steps": self.said("steps"),
            "guidance_scale": self.said("guidance"),
            "partial_images": self.partial_images or 0,
            "edit": edit,
        }


class Edit(Generation):
    """The fields of an edit's form, beside its pictures."""

    input_fidelity: str | None = None
    strength: Annotated[Real, Field(gt=0, le=1)] | None = None


class Picture(BaseModel):
    """One picture: in base64 or where it is."""

    b64_json: str | None = None
    url: str | None = None
    seed: int


class Usage(BaseModel):
    """Sizes of what came and went: words of the prompts, blocks of 32 x 32 pixels of pictures."""

    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class Pictures(BaseModel):
    """The answer to a generation or an edit."""

    created: int
    background: str = "opaque"
    data: list[Picture]
    output_format: Format
    size: str
    usage: Usage


class Model(BaseModel):
    """A model that is served."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "sanakit"


class Models(BaseModel):
    """The models that are served."""

    object: str = "list"
    data: list[Model]


def size_of(text: str | None) -> tuple[int | None, int | None]:
    """Give width and height; None for both where the model's own size is meant.

    Raises:
        Refused: 400, not of the form.
    """
    if text in (None, "", "auto"):
        return None, None
    match = SIZE.fullmatch(text)
    if match is None:
        said = "size is no WIDTHxHEIGHT, as 1024x1024"
        raise Refused(400, said, param="size", code="invalid_value")
    return int(match[1]), int(match[2])


def router(service: JobService, settings: ServeSettings) -> APIRouter:
    """Give the routes of this shape."""
    routes = APIRouter(prefix="/v1", tags=["openai"])

    @routes.get("/models")
    async def models() -> Models:
        """List the one model that is served."""
        return Models(data=[Model(id=settings.model, created=int(settings.started))])

    @routes.get("/models/{model:path}")
    async def model(model: str) -> Model:
        """Tell about a model."""
        settings.check_model(model or "without a name")
        return Model(id=settings.model, created=int(settings.started))

    @routes.post("/images/generations", response_model_exclude_none=True, response_model=Pictures)
    async def generations(body: Generation, request: Request) -> Any:
        """Draw pictures from a prompt."""
        settings.check_model(body.model)
        job = await submitted(service, body.request(), request, NAMES)
        return await answer(body, job, request, "image_generation")

    @routes.post(
        "/images/edits",
        response_model_exclude_none=True,
        response_model=Pictures,
        openapi_extra={"requestBody": _form_schema()},
    )
    async def edits(request: Request) -> Any:
        """Draw a picture anew, or what is transparent in its mask."""
        body, job = await edited(request)
        let_go(request)
        return await answer(body, job, request, "image_edit")

    async def edited(request: Request) -> tuple[Edit, Job]:
        """Queue an edit; when this is left, its pictures are on the disk alone."""
        fields, images, mask = await _form(request, settings.limits.body_bytes)
        most = settings.limits.picture_pixels
        body = Edit.model_validate_strings(fields)
        settings.check_model(body.model)
        if len(images) != 1:
            raise Refused(
                400,
                f"{len(images)} pictures were sent, and one is edited at a time",
                param="image",
                code="invalid_value",
            )
        edit = EditPicture(
            image=in_base64(images[0]),
            mask=None if mask is None else in_base64(await decoding(mask_of_alpha, mask, most)),
            strength=body.strength,
        )
        return body, await submitted(service, body.request(edit), request, NAMES)

    async def answer(body: Generation, job: Job, request: Request, kind: str) -> Any:
        if body.stream:
            return PictureStream(stream(job, body, kind), service, job)
        job = await drawn(service, job, request)
        data = [
            Picture(
                b64_json=None if body.response_format == "url" else await content(job, i, body),
                url=place(request, job, i, body) if body.response_format == "url" else None,
                seed=image.seed,
            )
            for i, image in enumerate(job.images)
        ]
        return Pictures(
            created=int(job.created),
            data=data,
            output_format=body.output_format,
            size=f"{job.images[0].width}x{job.images[0].height}",
            usage=usage_of(job, range(len(job.images))),
        )

    async def content(job: Job, index: int, body: Generation) -> str:
        quality = _quality(body)
        return in_base64(await service.image_bytes(job, index, body.output_format, quality))

    def place(request: Request, job: Job, index: int, body: Generation) -> str:
        url = request.url_for("image", job=job.id, index=index)
        if body.output_format != "png":
            url = url.include_query_params(format=body.output_format, quality=_quality(body))
        return str(url)

    async def stream(job: Job, body: Generation, kind: str) -> AsyncIterator[str]:
        """Tell previews and pictures as they come, or at last why there is none."""
        told = {
            "background": "opaque",
            "created_at": int(job.created),
            "output_format": body.output_format,
            "quality": "auto",
        }
        try:
            async for event in with_silence(service.events(job.id, owner=job.owner)):
                if event is None:
                    yield STILL_HERE
                elif event.kind == "preview" and "partial_image_index" in event.data:
                    yield _event(
                        f"{kind}.partial_image",
                        b64_json=event.data["image"],
                        partial_image_index=event.data["partial_image_index"],
                        size="auto",
                        **told | {"output_format": "jpeg"},
                    )
                elif event.kind == "image":
                    index = event.data["index"]
                    image = job.images[index]
                    yield _event(
                        f"{kind}.completed",
                        b64_json=await content(job, index, body),
                        seed=image.seed,
                        size=f"{image.width}x{image.height}",
                        usage=usage_of(job, [index]).model_dump(),
                        **told,
                    )
            if job.state != "done":
                raise failure(job)
            yield "data: [DONE]\n\n"
        except Exception as error:
            yield f"event: error\ndata: {json.dumps(refusal_of(error).openai())}\n\n"

    return routes


def usage_of(job: Job, indices: Iterable[int]) -> Usage:
    """Count what a job took in and gave out, in words and blocks."""
    wanted = job.request
    words = len(f"{wanted.prompt} {wanted.negative_prompt}".split())
    blocks = [-(-job.images[i].height // BLOCK) * -(-job.images[i].width // BLOCK) for i in indices]
    out = sum(blocks)
    taken = blocks[0] if wanted.edit is not None else 0
    return Usage(
        input_tokens=words + taken,
        input_tokens_details={"text_tokens": words, "image_tokens": taken},
        output_tokens=out,
        output_tokens_details={"text_tokens": 0, "image_tokens": out},
        total_tokens=words + taken + out,
    )


def _event(kind: str, **values: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **values})}\n\n"


def _quality(body: Generation) -> int:
    return 100 if body.output_compression is None else body.output_compression


async def _form(request: Request, most: int) -> tuple[dict[str, str], list[bytes], bytes | None]:
    """Read a form in memory: its fields, the pictures to edit, the mask.

    Raises:
        Refused: 400 or 415, no form, a field twice, or a picture where none is meant.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise Refused(415, "an edit is sent as multipart/form-data", code="bad_content_type")
    reader = MultiPartParser(request.headers, request.stream(), max_files=17, max_fields=64)
    reader.spool_max_size = most + 1  # nothing is written to a temporary file
    try:
        form = await reader.parse()
    except MultiPartException as error:
        raise Refused(400, error.message, code="bad_form") from None
    try:
        return await _parts(form)
    finally:
        await form.close()


async def _parts(form: FormData) -> tuple[dict[str, str], list[bytes], bytes | None]:
    fields: dict[str, str] = {}
    images: list[bytes] = []
    mask: bytes | None = None
    for name, value in form.multi_items():
        what = name[:80]
        if name in PICTURES and isinstance(value, str):
            images.append(picture_bytes(value, what))
        elif name in PICTURES and isinstance(value, UploadFile):
            images.append(await value.read())
        elif name == "mask" and mask is None:
            mask = picture_bytes(value, what) if isinstance(value, str) else await value.read()
        elif name in fields or not isinstance(value, str):
            said = "comes twice" if name in fields or name == "mask" else "is no picture's field"
            raise Refused(400, f"{what} {said}", param=what, code="bad_form")
        else:
            fields[name] = value
    return fields, images, mask


def _form_schema() -> dict[str, Any]:
    picture = {"type": "string", "format": "binary"}
    several = {"type": "array", "items": picture, "maxItems": 1}
    schema = Edit.model_json_schema()
    schema["properties"] |= {"image": picture, "image[]": several, "mask": picture}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
