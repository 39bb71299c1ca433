"""The shape of A1111's API, for the clients that speak it.

A setting that has no meaning here is taken as long as it would change nothing there either, and
refused otherwise. What is left out is the model's own default, not that of A1111.
"""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Annotated, Any

import psutil
from fastapi import APIRouter, Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model

from sanakit.errors import DataError, did_you_mean
from sanakit.pipeline.png import format_parameters, own_version, read_settings
from sanakit.serve.answers import drawn, owner_of, submitted
from sanakit.serve.limits import let_go
from sanakit.serve.pictures import decoding, in_base64, inverted, picture_bytes
from sanakit.serve.refusals import Refused
from sanakit.serve.requests import EditPicture, Real, Whole

if TYPE_CHECKING:
    from sanakit.serve.job import Job
    from sanakit.serve.jobs import JobService
    from sanakit.serve.settings import ServeSettings

Values = tuple[Any, ...]
SAMPLERS = {
    "Euler": "flow-euler",
    "Heun": "flow-heun",
    "DPM++ 2M": "flow-dpm-solver",
    "DPM++ 3M": "flow-dpm-solver-3",
    "UniPC": "flow-unipc",
}
"""Their names for the solvers that are of the same method."""
NAMES = {"count": "batch_size", "num_steps": "steps", "guidance_scale": "cfg_scale"}
"""This shape's names for parameters of ours."""
OWN_CHOICE = (None, "", "Automatic", "automatic")
IDLE: dict[str, tuple[Values, str]] = {
    "styles": ((None, []), "write the style into the prompt"),
    "subseed_strength": ((None, 0), "no seeds are mixed"),
    "seed_resize_from_h": ((None, -1, 0), "seeds are of a size"),
    "seed_resize_from_w": ((None, -1, 0), "seeds are of a size"),
    "scheduler": (OWN_CHOICE, "the model has one schedule"),
    "restore_faces": ((None, False), "there is no such network"),
    "tiling": ((None, False), "pictures have edges"),
    "eta": ((None, 0), "solvers add no noise"),
    "s_min_uncond": ((None, 0), "say guidance_interval at /jobs"),
    "s_churn": ((None, 0), "solvers add no noise"),
    "refiner_checkpoint": ((None, "", "None"), "there is one model"),
    "enable_hr": ((None, False), "draw at the size that is wanted"),
    "clip_skip": ((None, 0, 1), "the text encoder is no CLIP"),
    "script_name": ((None, ""), "there are no scripts"),
    "alwayson_scripts": ((None, {}), "there are no scripts"),
    "infotext": ((None, ""), "send the settings themselves"),
    "resize_mode": ((None, 0, 1), "a picture is scaled to cover the size"),
    "mask_blur": ((None, 0, 4), "masks have a soft edge of 8 pixels"),
    "mask_blur_x": ((None, 0, 4), "masks have a soft edge of 8 pixels"),
    "mask_blur_y": ((None, 0, 4), "masks have a soft edge of 8 pixels"),
    "inpainting_fill": ((None, 0, 1), "what is drawn anew begins with what was there"),
    "inpaint_full_res": ((None, False, True, 0, 1), "the whole picture is seen"),
    "image_cfg_scale": ((None,), "guidance is of the prompt"),
    "initial_noise_multiplier": ((None, 1), "say denoising_strength"),
    "latent_mask": ((None,), "send a mask"),
}
"""Settings without a meaning here: what they may be, and why they may be nothing else."""
WITHOUT_EFFECT = (
    *("save_images", "do_not_save_samples", "do_not_save_grid", "force_task_id", "comments"),
    *("override_settings_restore_afterwards", "subseed", "s_tmin", "s_tmax", "s_noise"),
    *("refiner_switch_at", "script_args", "hr_scale", "hr_upscaler", "hr_second_pass_steps"),
    *("hr_resize_x", "hr_resize_y", "hr_checkpoint_name", "hr_sampler_name", "hr_scheduler"),
    *("hr_prompt", "hr_negative_prompt", "hr_additional_modules", "hr_cfg", "firstphase_width"),
    *("firstphase_height", "inpaint_full_res_padding", "include_init_images"),
    *("url", "auth"),  # which one client leaves in, of its own settings
)
"""Settings that change no picture as long as those above are at their defaults."""
OPTIONS: dict[str, Values] = {
    "CLIP_stop_at_last_layers": (1,),
    "sd_vae": ("Automatic", "None", "", None),
    "samples_format": ("png",),
    "forge_additional_modules": ([], None),
    "sd_checkpoint_hash": ("",),
}
"""Options beside the model: the first value is the one in force, the others mean the same."""
LORA = re.compile(r"<lora:([^:<>]{1,80})(?::([^<>]{0,20}))?>")


def _only(name: str) -> Any:
    taken, why = IDLE[name]

    def check(value: Any) -> Any:
        if not any(type(value) is type(one) and value == one for one in (*taken, *_as_real(taken))):
            raise ValueError(f"has no meaning here: {why}")
        return value

    return (Annotated[Any, BeforeValidator(check)], None)


def _as_real(taken: Values) -> Values:
    return tuple(float(one) for one in taken if type(one) is int)


class _Drawing(BaseModel):
    model_config = ConfigDict(extra="forbid")

    prompt: str = ""
    negative_prompt: str | None = ""
    seed: Annotated[Whole, Field(ge=-1, lt=2**63)] | None = -1
    sampler_name: str | None = None
    sampler_index: str | None = None
    batch_size: Annotated[Whole, Field(ge=1)] | None = 1
    n_iter: Annotated[Whole, Field(ge=1)] | None = 1
    steps: Annotated[Whole, Field(ge=1)] | None = None
    cfg_scale: Annotated[Real, Field(ge=0)] | None = None
    width: Annotated[Whole, Field(ge=1)] | None = None
    height: Annotated[Whole, Field(ge=1)] | None = None
    denoising_strength: Annotated[Real, Field(ge=0, le=1)] | None = None
    send_images: bool = True
    disable_extra_networks: bool = False
    override_settings: dict[str, Any] | None = None


_FIELDS: dict[str, Any] = dict.fromkeys(WITHOUT_EFFECT, (Any, None))
_FIELDS |= {name: _only(name) for name in IDLE}
TextToImage: Any = create_model("TextToImage", __base__=_Drawing, **_FIELDS)
ImageToImage: Any = create_model(
    "ImageToImage",
    __base__=TextToImage,
    init_images=(list[str], Field(min_length=1, max_length=1)),
    mask=(str | None, None),
    inpainting_mask_invert=(Annotated[Whole, Field(ge=0, le=1)] | None, 0),
)


class Drawn(BaseModel):
    """Pictures in base64, what was asked for, and all about them as a JSON text."""

    images: list[str]
    parameters: dict[str, Any]
    info: str


class PngInfo(BaseModel):
    """A picture in base64."""

    image: str


def router(service: JobService, settings: ServeSettings) -> APIRouter:
    """Give the routes of this shape."""
    routes = APIRouter(prefix="/sdapi/v1", tags=["a1111"])

    def options_now() -> dict[str, Any]:
        return {"sd_model_checkpoint": settings.model} | {n: v[0] for n, v in OPTIONS.items()}

    @routes.get("/options")
    async def options() -> dict[str, Any]:
        """Tell the options that clients ask for."""
        return options_now()

    @routes.post("/options")
    async def set_options(wanted: dict[str, Any]) -> None:
        """Take the options as they are; none can be changed while the server runs."""
        check_options(wanted)

    def check_options(wanted: dict[str, Any]) -> None:
        for name, value in wanted.items():
            if name == "sd_model_checkpoint":
                settings.check_model(value, name)
            elif name not in OPTIONS:
                hint = did_you_mean(name[:80], OPTIONS)
                raise Refused(400, f"option {name[:80]} is unknown; {hint}", param=name[:80])
            elif value not in OPTIONS[name]:
                raise Refused(
                    400, f"option {name} is {OPTIONS[name][0]!r} here, and stays so", param=name
                )

    @routes.get("/sd-models")
    async def models() -> list[dict[str, Any]]:
        """List the one model that is served."""
        name = settings.model
        none = {"hash": None, "sha256": None, "config": None}
        return [{"title": name, "model_name": name, "filename": name, **none}]

    @routes.get("/samplers")
    async def samplers() -> list[dict[str, Any]]:
        """List the solvers."""
        return [
            {"name": name, "aliases": [a for a, own in SAMPLERS.items() if own == name]}
            | {"options": {}}
            for name in service.capabilities.get("solvers", [])
        ]

    @routes.get("/schedulers")
    async def schedulers() -> list[dict[str, Any]]:
        """List the one schedule: the model's own."""
        more = {"aliases": None, "default_rho": -1.0, "need_inner_model": False}
        return [{"name": "automatic", "label": "Automatic", **more}]

    @routes.get("/upscalers")
    async def upscalers() -> list[dict[str, Any]]:
        """List none."""
        return [
            {"name": "None"}
            | dict.fromkeys(("model_name", "model_path", "model_url", "scale"), None)
        ]

    @routes.get("/latent-upscale-modes")
    @routes.get("/sd-vae")
    @routes.get("/sd-modules")
    async def nothing() -> list[dict[str, Any]]:
        """List none."""
        return []

    @routes.get("/loras")
    async def loras() -> list[dict[str, Any]]:
        """List the LoRA that a prompt may name."""
        names = service.capabilities.get("loras", [])
        return [{"name": name, "alias": name, "path": name, "metadata": {}} for name in names]

    @routes.get("/progress")
    async def progress(request: Request, skip_current_image: bool = False) -> dict[str, Any]:
        """Tell how far one's own drawing is."""
        now = service.progress(owner_of(request))
        job: Job | None = now["job"]
        step, steps = (0, 0) if job is None else (job.step, job.steps)
        preview = None if job is None or skip_current_image else service.preview(job)
        return {
            "progress": step / steps if steps else 0.0,
            "eta_relative": now["eta_seconds"] or 0.0,
            "state": {
                "skipped": False,
                "interrupted": False,
                "stopping_generation": False,
                "job": "" if job is None else job.id,
                "job_count": 0 if job is None else 1,
                "job_timestamp": _timestamp(None if job is None else job.created),
                "job_no": 0,
                "sampling_step": step,
                "sampling_steps": steps,
            },
            "current_image": None if preview is None else in_base64(preview),
            "textinfo": None,
        }

    @routes.post("/interrupt")
    @routes.post("/skip")
    async def interrupt(request: Request) -> dict[str, Any]:
        """End one's own drawing that runs."""
        service.interrupt_all(owner_of(request))
        return {}

    @routes.post("/txt2img")
    async def text_to_image(body: TextToImage, request: Request) -> Drawn:
        """Draw from a prompt."""
        return await answer(await queued(body, None, request), body, request)

    @routes.post("/img2img", openapi_extra={"requestBody": _json_schema(ImageToImage)})
    async def image_to_image(request: Request) -> Drawn:
        """Draw a picture anew, or what is white in its mask."""
        job, sent = await edited(request)
        let_go(request)
        return await answer(job, sent, request)

    async def edited(request: Request) -> tuple[Job, Any]:
        """Queue an edit; when this is left, its pictures are on the disk alone."""
        if "json" not in request.headers.get("content-type", "").lower():
            raise Refused(400, "a body is sent with Content-Type: application/json")
        data = b"".join([part async for part in request.stream()])
        body = ImageToImage.model_validate_json(data)
        if body.denoising_strength == 0:
            raise Refused(
                400, "denoising_strength=0 would change nothing", param="denoising_strength"
            )
        mask = body.mask
        if mask is not None and body.inpainting_mask_invert:
            data = picture_bytes(mask, "mask")
            mask = in_base64(await decoding(inverted, data, settings.limits.picture_pixels))
        edit = EditPicture(
            image=body.init_images[0],
            mask=mask,
            strength=0.75 if body.denoising_strength is None else body.denoising_strength,
        )
        sent = body.model_copy(update=dict.fromkeys(("init_images", "mask")))
        return await queued(body, edit, request), sent

    async def queued(body: Any, edit: EditPicture | None, request: Request) -> Job:
        check_options(body.override_settings or {})
        prompt, lora = (body.prompt, ()) if body.disable_extra_networks else _lora(body.prompt)
        wanted = {
            "prompt": prompt,
            "negative_prompt": body.negative_prompt or "",
            "seed": None if body.seed in (None, -1) else body.seed,
            "count": (body.batch_size or 1) * (body.n_iter or 1),
            "height": body.height,
            "width": body.width,
            "num_steps": body.steps,
            "guidance_scale": body.cfg_scale,
            "solver": _solver(body, service.capabilities.get("solvers", [])),
            "lora": lora,
            "edit": edit,
        }
        return await submitted(service, wanted, request, NAMES)

    async def answer(job: Job, body: Any, request: Request) -> Drawn:
        job = await drawn(service, job, request)
        pngs = [await service.image_bytes(job, i) for i in range(len(job.images))]
        sent = body.model_dump(exclude={"init_images", "mask", "url", "auth"}, exclude_unset=True)
        return Drawn(
            images=[in_base64(png) for png in pngs] if body.send_images else [],
            parameters=sent,
            info=json.dumps(await decoding(_info, job, pngs, settings.model)),
        )

    @routes.post("/png-info")
    async def png_info(body: PngInfo) -> dict[str, Any]:
        """Read the settings inside a picture."""
        data = picture_bytes(body.image, "image")
        try:
            found = await decoding(read_settings, data)
        except DataError:
            return {"info": "", "items": {}, "parameters": {}}
        text = format_parameters(found, made_by=own_version())
        return {"info": text, "items": {"parameters": text}, "parameters": _labelled(found)}

    @routes.get("/memory")
    async def memory() -> dict[str, Any]:
        """Tell the machine's memory in bytes."""
        now = psutil.virtual_memory()
        return {
            "ram": {"free": now.available, "used": now.total - now.available, "total": now.total},
            "cuda": {"error": "not asked: the model is in another process"},
        }

    return routes


def _json_schema(model: type[BaseModel]) -> dict[str, Any]:
    """What a route says of a body that it reads by itself."""
    schema = model.model_json_schema()
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _solver(body: Any, solvers: list[str]) -> str | None:
    said = body.sampler_name if body.sampler_name not in OWN_CHOICE else body.sampler_index
    if said in OWN_CHOICE:
        return None
    name = SAMPLERS.get(said, said)
    if solvers and name not in solvers:  # none is known while the model loads
        hint = did_you_mean(said[:80], [*solvers, *SAMPLERS])
        raise Refused(
            404, f"Sampler not found: {said[:80]!r}; {hint}", param="sampler_name", code="not_found"
        )
    return str(name)


def _lora(prompt: str) -> tuple[str, tuple[str, ...]]:
    """Take the LoRA that a prompt names out of it."""
    names = []
    for name, weight in LORA.findall(prompt):
        if weight not in ("", "1", "1.0"):
            raise Refused(
                400, f"<lora:{name}:{weight}>: its strength is the server's", param="prompt"
            )
        names.append(name)
    return LORA.sub("", prompt).strip() if names else prompt, tuple(names)


def _info(job: Job, pngs: list[bytes], model: str) -> dict[str, Any]:
    told = [read_settings(png) for png in pngs]
    first, count = told[0], len(told)
    seeds = [image.seed for image in job.images]
    return {
        "prompt": job.request.prompt,
        "all_prompts": [job.request.prompt] * count,
        "negative_prompt": job.request.negative_prompt,
        "all_negative_prompts": [job.request.negative_prompt] * count,
        "seed": seeds[0],
        "all_seeds": seeds,
        "subseed": seeds[0],
        "all_subseeds": seeds,
        "subseed_strength": 0,
        "width": job.images[0].width,
        "height": job.images[0].height,
        "sampler_name": first.get("solver"),
        "cfg_scale": first.get("guidance_scale"),
        "steps": first.get("num_steps"),
        "batch_size": count,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": model,
        "sd_model_hash": first.get("model_hash"),
        "sd_vae_name": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": job.request.edit.strength if job.request.edit else None,
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": [format_parameters(one, made_by=own_version()) for one in told],
        "styles": [],
        "job_timestamp": _timestamp(job.created),
        "clip_skip": 1,
        "is_using_inpainting_conditioning": False,
        "version": f"sanakit {own_version()}",
    }


LABELS = {
    "prompt": "Prompt",
    "negative_prompt": "Negative prompt",
    "num_steps": "Steps",
    "solver": "Sampler",
    "guidance_scale": "CFG scale",
    "seed": "Seed",
    "width": "Size-1",
    "height": "Size-2",
    "model": "Model",
    "model_hash": "Model hash",
}


def _labelled(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        label: str(settings[key]) for key, label in LABELS.items() if settings.get(key) is not None
    }


def _timestamp(seconds: float | None) -> str:
    return time.strftime("%Y%m%d%H%M%S", time.gmtime(0 if seconds is None else seconds))
