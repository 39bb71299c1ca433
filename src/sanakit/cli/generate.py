"""`sanakit generate`, `again`, `info`, `decode`: draw pictures, read their settings, redo them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sanakit.cli import drawing
from sanakit.cli.best_of import REMEMBERED, Choice, choice_of
from sanakit.cli.control import branch_in, control_of
from sanakit.cli.decoders import (
    DECODER,
    check_decoder,
    decode_with,
    decoder_in,
    decoder_noted,
)
from sanakit.cli.drawing import (
    Drawer,
    Setup,
    begun,
    check_wanted,
    numbered,
    peak_memory_mb,
    placed,
    tune,
    write_picture,
)
from sanakit.cli.known import check_size_of
from sanakit.cli.loras import check_loras_of
from sanakit.cli.machine import (
    AUTO,
    Device,
    Dtype,
    Machine,
    Quantize,
    check_memory,
    together,
)
from sanakit.cli.options import (
    SOLVERS,
    ApgEta,
    ApgMomentum,
    ApgNorm,
    BestOf,
    ControlImage,
    ControlKind,
    ControlNet,
    ControlScale,
    Count,
    Decoder,
    GuidanceInterval,
    GuidanceScale,
    Json,
    Lora,
    Model,
    Negative,
    NoMetadata,
    Offline,
    Out,
    Prompt,
    Quiet,
    Scorer,
    Seed,
    Shown,
    Side,
    Solver,
    StepCache,
    Steps,
)
from sanakit.cli.progress import StopFlag, progress
from sanakit.cli.terminal import processes, say
from sanakit.errors import ConfigError, SanakitError, plain
from sanakit.files import expanded

if TYPE_CHECKING:
    import torch

    from sanakit.pipeline.decoder import Origin
    from sanakit.pipeline.editing import Edit
    from sanakit.pipeline.pipeline import Picture

STANDARD_OUTPUT = "-"
MACHINE = ("device", "dtype", "quantize")
ABOUT_THE_FILE = (
    *("model", "model_hash", "version", "format", "lora", "lora_hash", "processes"),
    *REMEMBERED,
    *("controlnet", "controlnet_hash", DECODER, f"{DECODER}_hash"),
    *MACHINE,
)

Drawn = Annotated[Path, typer.Argument(help="A PNG that sanakit wrote.")]


def generate(
    prompt: Prompt,
    out: Out = "out.png",
    model: Model = None,
    lora: Lora = None,
    seed: Seed = 0,
    steps: Steps = None,
    guidance: GuidanceScale = None,
    apg_eta: ApgEta = None,
    apg_momentum: ApgMomentum = None,
    apg_norm: ApgNorm = None,
    guidance_interval: GuidanceInterval = None,
    step_cache: StepCache = 0.0,
    negative: Negative = "",
    width: Side = None,
    height: Side = None,
    count: Count = 1,
    best_of: BestOf = None,
    scorer: Scorer = None,
    solver: Solver = None,
    control: ControlImage = None,
    control_kind: ControlKind = "none",
    control_scale: ControlScale = 1.0,
    controlnet: ControlNet = None,
    decoder: Decoder = None,
    offline: Offline = False,
    device: Device = AUTO,
    dtype: Dtype = None,
    quantize: Quantize = None,
    no_metadata: NoMetadata = False,
    shown: Shown = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw pictures from a prompt and store all settings inside them."""
    draw(
        {
            "prompt": prompt,
            "negative_prompt": negative,
            "seed": seed,
            "count": count,
            "height": height,
            "width": width,
            "num_steps": steps,
            "guidance_scale": guidance,
            "guider": guider_of(apg_eta, apg_momentum, apg_norm),
            "guidance_interval": guidance_interval or (0.0, 1.0),
            "step_cache": step_cache,
            "solver": solver,
            "control": control_of(control, control_kind, control_scale, controlnet),
        },
        Setup(
            model=model,
            machine=Machine(device=device, dtype=dtype, quantize=quantize),
            loras=lora or [],
            controlnet=controlnet,
            decoder=decoder,
            offline=offline,
        ),
        out=out,
        choice=choice_of(best_of, scorer, count),
        metadata=not no_metadata,
        shown=shown,
        json_=json_,
        quiet=quiet,
    )


def draw(
    wanted: Mapping[str, Any],
    setup: Setup,
    *,
    out: str,
    choice: Choice | None = None,
    metadata: bool,
    shown: bool | None,
    json_: bool,
    quiet: bool,
) -> None:
    """Draw what was typed, write it and tell of it; what can be refused is, before torch is loaded.

    ``wanted`` are the fields of a request; its count is of what is kept, where there is a choice.
    """
    kept, seed = wanted["count"], wanted["seed"]
    drawn = kept if choice is None else choice.of
    check_wanted({**wanted, "count": drawn}, setup)
    paths = output_paths(out, kept, seed)
    if kept > 1:  # each is named by its own seed
        paths = output_paths(out, drawn, seed)
    report = _generate(
        {**wanted, "count": drawn},
        setup,
        paths=paths,
        shown=False if json_ or quiet else shown,
        quiet=quiet or json_,
        choice=choice,
        metadata=metadata,
    )
    _tell(report, as_json=json_, quiet=quiet)


def again(
    image: Drawn,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", "--output", help="PNG to write. Default: NAME-again.png."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Another model than the one stored.")
    ] = None,
    offline: Offline = False,
    device: Device = AUTO,
    dtype: Dtype = None,
    quantize: Quantize = None,
    no_metadata: NoMetadata = False,
    shown: Shown = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw a picture again from the settings inside it; the same bits on the same machine."""
    typed = Machine(device=device, dtype=dtype, quantize=quantize)
    paths = output_paths(out or str(image.with_name(f"{image.stem}-again.png")), 1, 0)
    from sanakit.pipeline.png import read_settings

    settings = read_settings(image)
    wanted = {k: v for k, v in settings.items() if k not in ABOUT_THE_FILE}
    if "count" not in wanted:  # which all pictures of ours have
        _drop_foreign(wanted)
    if wanted.get("count", 1) != 1:
        raise ConfigError(
            f"{image}: its setting count={plain(wanted['count'])} is not that of one picture",
            hint="generate the picture again",
        )
    name = _named(model, settings.get("model"), image)
    loras = settings.get("lora", [])
    if not isinstance(loras, list) or not all(isinstance(one, str) for one in loras):
        raise ConfigError(f"{image}: its setting 'lora' is no list of names")
    controlnet = branch_in(settings, image, offline=offline)
    decoder = decoder_in(settings, image, offline=offline)
    machine = _machine_of(settings, typed, image)
    check_size_of(name, wanted.get("height"), wanted.get("width"), offline=offline)
    check_loras_of(image, loras, settings.get("lora_hash"))
    _note_other_processes(settings.get("processes", 1))
    report = _generate(
        # Pictures of before it was a setting were drawn at the very size that they have.
        {"use_resolution_binning": False, **wanted},
        Setup(
            model=name,
            machine=machine,
            loras=loras,
            controlnet=controlnet,
            decoder=decoder,
            offline=offline,
        ),
        paths=paths,
        shown=False if json_ or quiet else shown,
        quiet=quiet or json_,
        metadata=not no_metadata,
    )
    _note_other_weights(name, settings.get("model_hash"))
    _tell(report, as_json=json_, quiet=quiet)


def guider_of(
    eta: float | None, momentum: float | None, norm: float | None
) -> dict[str, Any] | None:
    """What a request's guider is; None where no option asked for one."""
    asked = {
        "eta": eta,
        "adaptive_projected_guidance_momentum": momentum,
        "adaptive_projected_guidance_rescale": norm,
    }
    return {name: value for name, value in asked.items() if value is not None} or None


def _drop_foreign(wanted: dict[str, Any]) -> None:
    """Take out of another program's settings what has no meaning for these models."""
    solver = wanted.get("solver")
    if solver is not None and solver not in SOLVERS:
        say(f"note: its sampler {solver!r} is not here; the model's own is used", err=True)
        del wanted["solver"]


def _machine_of(settings: Mapping[str, Any], typed: Machine, image: Path) -> Machine:
    """Where and how a picture was drawn, unless something else was typed."""
    stored = {"device": "cpu"} | {key: settings[key] for key in MACHINE if key in settings}
    for key, value in stored.items():
        if not isinstance(value, str):
            raise ConfigError(f"{image}: its setting {key!r} is no name")
    named = typed.to_json() | ({} if typed.device == AUTO else {"device": typed.device})
    if "device" not in named and stored["device"] != "cpu":
        from sanakit.pipeline.placement import accelerator

        if accelerator().type != stored["device"]:
            say(
                f"note: it was drawn on {stored['device']}, which is not here; the picture may "
                "differ in its last bits",
                err=True,
            )
            stored["device"] = AUTO
    return Machine(**{**stored, **named})


def info(image: Drawn, json_: Json = False) -> None:
    """Print the settings stored inside a picture."""
    from sanakit.pipeline.png import read_settings

    settings = read_settings(image)
    if json_:
        say(json.dumps(settings))
        return
    if not settings:
        say("its settings are empty")
        return
    wide = max(len(plain(key)) for key in settings)
    for key, value in settings.items():
        shown = value if isinstance(value, str) else json.dumps(value)
        say(f"{plain(key):<{wide}}  {shown}")


def decode(
    latents: Annotated[Path, typer.Argument(help="Safetensors file with finished latents.")],
    out: Out = "out.png",
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Default: the model named in the file.")
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(help="Side in pixels of exact tiles. Default: chosen by free memory."),
    ] = None,
    decoder: Decoder = None,
    device: Device = AUTO,
    dtype: Dtype = None,
    quantize: Quantize = None,
    no_metadata: NoMetadata = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Turn latents that ran out of memory into the picture they would have been."""
    machine = Machine(device=device, dtype=dtype, quantize=quantize)
    if tile is not None and tile < 1:
        raise ConfigError(f"--tile {tile} must be at least 1 pixel", hint="512 is usual")
    if machine.to_json().get("dtype") == "float16":
        raise ConfigError(
            f"--dtype {dtype}: autoencoders overflow in it", hint="write --dtype bfloat16"
        )
    output_paths(out, 1, 0)
    check_decoder(decoder, offline=False)
    from sanakit.pipeline.decoder import read_latents

    latent, origin = read_latents(latents)
    name = _named(model, origin.model, latents)
    paths = output_paths(out, len(latent), 0)
    report = _decode(
        latent,
        origin,
        name,
        paths,
        tile=tile,
        decoder=decoder,
        machine=machine,
        quiet=quiet or json_,
        metadata=not no_metadata,
    )
    _tell(report, as_json=json_, quiet=quiet)


def output_paths(out: str, count: int, seed: int) -> list[Path | None]:
    """Name one file a picture; None is standard output.

    Raises:
        ConfigError: for an ending that is not .png, or several pictures to standard output.
    """
    if out == STANDARD_OUTPUT:
        if sys.__stdout__ is None:
            raise ConfigError("-o -: standard output is closed", hint="name a file")
        if count != 1:
            raise ConfigError(
                f"--count {count} with -o -: one picture goes to standard output",
                hint="name a file; the pictures get their seeds as numbers",
            )
        return [None]
    if not out:
        raise ConfigError("--out '' names no file", hint="write --out out.png")
    path = expanded(out)
    if path.is_dir() or out.endswith("/"):
        path = path / "out.png"
    if path.suffix.lower() != ".png":
        raise ConfigError(f"{out}: pictures are written as PNG", hint=f"try {path.stem}.png")
    if path.parent.is_file():
        raise ConfigError(f"{path.parent} is a file, not a folder", hint="name another folder")
    if not path.parent.is_dir():
        raise ConfigError(
            f"{path.parent}: no such folder", hint=f"make it first: mkdir -p {path.parent}"
        )
    return [*numbered(path, count, seed)]


def _generate(
    wanted: Mapping[str, Any],
    setup: Setup,
    *,
    paths: list[Path | None],
    shown: bool | None,
    quiet: bool,
    choice: Choice | None = None,
    metadata: bool,
) -> dict[str, Any]:
    """Load the model, draw, write; give what there is to report."""
    started = begun()
    with StopFlag() as stop, progress(shown=shown) as bar:
        bar.stage("starting")
        from sanakit.pipeline.pipeline import Pipeline
        from sanakit.pipeline.request import GenerateRequest

        request = GenerateRequest.from_json(wanted)
        drawer = Drawer(setup, size=(request.height, request.width), quiet=quiet)
        imported = time.perf_counter()
        bar.stage(f"loading {plain(drawer.model)}")
        pick = None if choice is None else choice.opened(drawer.device, offline=setup.offline)
        pipeline: Pipeline = drawer.load()
        tune(drawer.device, pipeline, request)
        loaded = time.perf_counter()
        bar.stage("drawing")

        def on_step(done: int, total: int) -> None:
            bar.step(done, total)
            stop.check(done, total)

        with together(*pipeline.components.networks.values()):
            result = pipeline.generate(request, on_step=on_step)
        pictures: Sequence[Picture] = result.pictures
        if pick is not None:
            bar.stage("choosing")
            chosen = pick(pictures, request.prompt)
            paths = [paths[place] if len(paths) > 1 else paths[0] for place, _ in chosen]
            pictures = [picture for _, picture in chosen]
        more = drawer.noted()
        for picture, path in zip(pictures, paths, strict=True):
            write_picture(path, picture.pixels, {**picture.settings, **more} if metadata else None)
    seconds = {
        "start": imported - started,
        "load": loaded - imported,
        **result.seconds,
        "total": time.perf_counter() - started,
    }
    told: dict[str, Any] = {"seed": request.seed}
    told["seeds"] = [picture.settings["seed"] for picture in pictures]
    if pick is not None:
        told["scores"] = [picture.settings["score"] for picture in pictures]
    return _report(paths, drawer.model, drawer.device, seconds, told)


def _decode(
    latent: Any,
    origin: Origin,
    model: str,
    paths: list[Path | None],
    *,
    tile: int | None,
    decoder: str | None,
    machine: Machine,
    quiet: bool,
    metadata: bool,
) -> dict[str, Any]:
    started = begun()
    from sanakit.nn.processor import tune_process
    from sanakit.pipeline.decoder import decode_pixels
    from sanakit.pipeline.networks import AutoencoderDC

    device = placed(machine, model, quiet=quiet)
    check_memory(model, machine, device, parts=("vae",), quiet=quiet)
    if drawing.own_process and device.type == "cpu":
        tune_process()
    imported = time.perf_counter()
    autoencoder = AutoencoderDC.from_pretrained(
        model,
        subfolder="vae",
        torch_dtype=machine.torch_dtype,
        quantization_config=machine.quantize,
        device_map=device,
    )
    wanted = autoencoder.config.latent_channels
    if latent.shape[1] != wanted:
        raise ConfigError(
            f"the latents have {latent.shape[1]} channels, the autoencoder of {model!r} {wanted}",
            hint="name the model that drew them with --model",
        )
    decode_with(decoder, autoencoder)
    _note_other_weights(model, origin.model_hash)
    if tile is not None:
        autoencoder.enable_tiling(tile, tile, tile, tile)
    loaded = time.perf_counter()
    with together(autoencoder):
        edit = _edit_behind(origin)
        size = edit.size if edit is not None and origin.size is None else origin.size
        pixels = decode_pixels(autoencoder, latent, size=size)
        if edit is not None:
            pixels = edit.at(*pixels.shape[1:3]).pasted_pixels(pixels, slice(None), len(pixels))
    decoded = time.perf_counter()
    for number, (picture, path) in enumerate(zip(pixels, paths, strict=True)):
        known = number < len(origin.settings)
        settings = origin.settings[number] if known else {"model": model}
        told = {**settings, **decoder_noted(decoder)}
        write_picture(path, picture, told if metadata else None)
    seconds = {
        "start": imported - started,
        "load": loaded - imported,
        "decode": decoded - loaded,
        "total": time.perf_counter() - started,
    }
    return _report(paths, model, device, seconds, {})


def _edit_behind(origin: Origin) -> Edit | None:
    """The picture that latents are an edit of, whose kept part is pasted over what they give."""
    asked = origin.settings[0].get("edit") if origin.settings else None
    if asked is None:
        return None
    from sanakit.pipeline.editing import read_edit
    from sanakit.pipeline.picture_requests import EditRequest
    from sanakit.untrusted import dataclass_from

    try:
        return read_edit(dataclass_from(EditRequest, asked, source="the settings' edit"))
    except SanakitError as error:
        say(f"note: what was edited is not pasted back: {error.message}", err=True)
        return None


def _named(model: str | None, stored: object, file: Path) -> str:
    """The model that was asked for, else the one that a file names."""
    name = model or stored
    if name is not None and not isinstance(name, str):
        raise ConfigError(f"{file}: its model is no name", hint="name one with --model")
    if name is None:
        raise ConfigError(f"{file}: does not say its model", hint="name one with --model")
    return name


def _note_other_weights(model: str, stored: str | None) -> None:
    from sanakit.pipeline.components import fingerprint
    from sanakit.weights.resolve import resolve_model

    if stored and fingerprint(resolve_model(model)) != stored:
        note = f"note: the weights of {model!r} are not those that drew it; the picture may differ"
        say(note, err=True)


def _note_other_processes(stored: object) -> None:
    """Say that sums are in another order than when a picture was drawn."""
    if stored != (now := processes()[1]):
        say(
            f"note: it was drawn by {plain(stored)} processes and is now by {now}; the picture may "
            "differ in its last bits",
            err=True,
        )


def _report(
    paths: list[Path | None],
    model: str,
    device: torch.device,
    seconds: dict[str, float],
    more: dict[str, Any],
) -> dict[str, Any]:
    return {
        "files": [STANDARD_OUTPUT if path is None else str(path) for path in paths],
        **more,
        "model": model,
        "device": str(device),
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        "peak_memory_mb": peak_memory_mb(),
    }


def _tell(report: dict[str, Any], *, as_json: bool, quiet: bool) -> None:
    """Say what was written and how long it took."""
    # A picture on standard output leaves standard error for the report.
    to_error = report["files"] == [STANDARD_OUTPUT]
    if as_json:
        say(json.dumps(report), err=to_error)
    elif not quiet:
        names = report["files"]
        if "seeds" in report:
            names = [f"{f}  seed {s}" for f, s in zip(names, report["seeds"], strict=True)]
        if "scores" in report:
            names = [f"{n}  score {s:g}" for n, s in zip(names, report["scores"], strict=True)]
        say(*names, err=to_error)
        seconds = report["seconds"]
        parts = ", ".join(f"{k} {v:.2f} s" for k, v in seconds.items() if k != "total")
        say(f"{seconds['total']:.2f} s in all: {parts}", err=True)
