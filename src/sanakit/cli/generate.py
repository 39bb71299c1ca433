"""`sanakit generate`, `again`, `info`, `decode`: draw pictures, read their settings, redo them."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sanakit.cli.terminal import say, say_bytes
from sanakit.errors import ConfigError, Interrupted, check_unicode, plain
from sanakit.files import expanded

if TYPE_CHECKING:
    from sanakit.pipeline.decoder import Origin
    from sanakit.pipeline.pipeline import OnStep, Pipeline
    from sanakit.pipeline.request import GenerateRequest

EMBEDDED = "glyph"
STANDARD_OUTPUT = "-"
ABOUT_THE_FILE = ("model", "model_hash", "version", "format", "lora")
DTYPES = ("float32", "bfloat16")

Out = Annotated[str, typer.Option("--out", "-o", help="PNG file to write; - is standard output.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing.")]
Side = Annotated[int | None, typer.Option(help="Pixels, a multiple of 32. Default: the model's.")]
Drawn = Annotated[Path, typer.Argument(help="A PNG that sanakit wrote.")]


def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw. Empty: whatever comes.")],
    out: Out = "out.png",
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Embedded name, folder, or owner/name. Default: glyph."),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            help="LoRA to draw with: a run, a folder or a file; FILE:0.7 weighs it. May be "
            "repeated."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same picture.")] = 0,
    steps: Annotated[int, typer.Option(help="Solver steps.")] = 20,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance scale; 1 is off. Default: the model's.")
    ] = None,
    negative: Annotated[str, typer.Option(help="What to keep out of the picture.")] = "",
    width: Side = None,
    height: Side = None,
    count: Annotated[
        int, typer.Option("--count", "-n", help="Pictures, at seeds SEED, SEED+1, ...")
    ] = 1,
    solver: Annotated[
        str | None,
        typer.Option(
            help="flow-dpm-solver (-1, -3: other orders), flow-unipc (-3), flow-euler or "
            "flow-heun. Default: the model's."
        ),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Fail rather than download a model.")
    ] = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw pictures from a prompt and store all settings inside them."""
    check_unicode(prompt, "the prompt")
    check_unicode(negative, "--negative")
    paths = output_paths(out, count, seed)
    from sanakit.pipeline.request import GenerateRequest

    request = GenerateRequest(
        prompt=prompt,
        negative_prompt=negative,
        seed=seed,
        count=count,
        height=height,
        width=width,
        num_steps=steps,
        guidance_scale=guidance,
        solver=solver,
    )
    loras = lora or []
    report = _generate(
        request,
        model=_model_behind(loras) if model is None else model,
        paths=paths,
        bar=not (json_ or quiet),
        offline=offline,
        loras=loras,
    )
    _tell(report, as_json=json_, quiet=quiet)


def again(
    image: Drawn,
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="PNG to write. Default: NAME-again.png.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Another model than the one stored.")
    ] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw a picture again from the settings inside it; the same bits on the same machine."""
    from sanakit.pipeline.png import read_settings
    from sanakit.pipeline.request import GenerateRequest

    settings = read_settings(image)
    wanted = {k: v for k, v in settings.items() if k not in ABOUT_THE_FILE}
    # Pictures of before it was a setting were drawn at the very size that they have.
    request = GenerateRequest.from_json({"use_resolution_binning": False, **wanted})
    name = _named(model, settings.get("model"), image)
    loras = settings.get("lora", [])
    if not isinstance(loras, list) or not all(isinstance(one, str) for one in loras):
        raise ConfigError(f"{image}: its setting 'lora' is no list of names")
    target = out or str(image.with_name(f"{image.stem}-again.png"))
    paths = output_paths(target, 1, request.seed)
    report = _generate(request, model=name, paths=paths, bar=not quiet, loras=loras)
    _note_other_weights(name, settings.get("model_hash"))
    _tell(report, as_json=json_, quiet=quiet)


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
    dtype: Annotated[
        str, typer.Option(help="float32, or bfloat16 for half the memory.")
    ] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda or mps.")] = "cpu",
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Turn latents that ran out of memory into the picture they would have been."""
    if dtype not in DTYPES:
        raise ConfigError(f"--dtype {dtype!r} is unknown", hint=f"one of {', '.join(DTYPES)}")
    if tile is not None and tile < 1:
        raise ConfigError(f"--tile {tile} must be at least 1 pixel", hint="512 is usual")
    from sanakit.pipeline.decoder import read_latents

    latent, origin = read_latents(latents)
    name = _named(model, origin.model, latents)
    paths = output_paths(out, len(latent), 0)
    report = _decode(latent, origin, name, paths, tile=tile, dtype=dtype, device=device)
    _tell(report, as_json=json_, quiet=quiet)


def output_paths(out: str, count: int, seed: int) -> list[Path | None]:
    """Name one file a picture; None is standard output.

    Raises:
        ConfigError: for an ending that is not .png, or several pictures to standard output.
    """
    if out == STANDARD_OUTPUT:
        if count != 1:
            raise ConfigError(
                f"--count {count} with -o -: one picture goes to standard output",
                hint="name a file; the pictures get their seeds as numbers",
            )
        return [None]
    path = expanded(out)
    if path.is_dir() or out.endswith("/"):
        path = path / "out.png"
    if path.suffix.lower() != ".png":
        raise ConfigError(f"{out}: pictures are written as PNG", hint=f"try {path.stem}.png")
    if not path.parent.is_dir():
        raise ConfigError(
            f"{path.parent}: no such folder", hint=f"make it first: mkdir -p {path.parent}"
        )
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{seed + i}.png") for i in range(count)]


def _generate(
    request: GenerateRequest,
    *,
    model: str,
    paths: list[Path | None],
    bar: bool,
    offline: bool = False,
    loras: Sequence[str] = (),
) -> dict[str, Any]:
    """Load the model, draw, write; give what there is to report."""
    started = time.perf_counter()
    with StopFlag() as stop:
        from sanakit.pipeline.pipeline import Pipeline

        pipeline = Pipeline.load(model, offline=offline)
        _add_loras(pipeline, loras)
        loaded = time.perf_counter()
        with _progress(stop, bar=bar) as on_step:
            result = pipeline.generate(request, on_step=on_step)
        more = {"lora": list(loras)} if loras else {}
        for picture, path in zip(result.pictures, paths, strict=True):
            _write(path, picture.pixels, {**picture.settings, **more})
    seconds = {"load": loaded - started, **result.seconds, "total": time.perf_counter() - started}
    seeds = [picture.settings["seed"] for picture in result.pictures]
    return _report(paths, model, seconds, {"seed": request.seed, "seeds": seeds})


def _decode(
    latent: Any,
    origin: Origin,
    model: str,
    paths: list[Path | None],
    *,
    tile: int | None,
    dtype: str,
    device: str,
) -> dict[str, Any]:
    import torch

    from sanakit.pipeline.decoder import decode_pixels
    from sanakit.pipeline.networks import AutoencoderDC

    started = time.perf_counter()
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(device.split(":")[0], False):
        raise ConfigError(
            f"--device {device!r} is not there",
            hint=f"this machine has {', '.join(k for k, v in there.items() if v)}",
        )
    autoencoder = AutoencoderDC.from_pretrained(
        model,
        subfolder="vae",
        torch_dtype=getattr(torch, dtype),
        device_map=torch.device(device),
    )
    wanted = autoencoder.config.latent_channels
    if latent.shape[1] != wanted:
        raise ConfigError(
            f"the latents have {latent.shape[1]} channels, the autoencoder of {model!r} {wanted}",
            hint="name the model that drew them with --model",
        )
    _note_other_weights(model, origin.model_hash)
    if tile is not None:
        autoencoder.enable_tiling(tile, tile, tile, tile)
    loaded = time.perf_counter()
    pixels = decode_pixels(autoencoder, latent, size=origin.size)
    decoded = time.perf_counter()
    for number, (picture, path) in enumerate(zip(pixels, paths, strict=True)):
        known = number < len(origin.settings)
        _write(path, picture, origin.settings[number] if known else {"model": model})
    seconds = {"load": loaded - started, "decode": decoded - loaded}
    return _report(paths, model, {**seconds, "total": time.perf_counter() - started}, {})


def _named(model: str | None, stored: str | None, file: Path) -> str:
    """The model that was asked for, else the one that a file names."""
    name = model or stored
    if name is None:
        raise ConfigError(f"{file}: does not say its model", hint="name one with --model")
    return name


def _note_other_weights(model: str, stored: str | None) -> None:
    from sanakit.pipeline.components import fingerprint
    from sanakit.weights.resolve import resolve_model

    if stored and fingerprint(resolve_model(model)) != stored:
        note = f"note: the weights of {model!r} are not those that drew it; the picture may differ"
        say(note, err=True)


def _write(path: Path | None, pixels: Any, settings: Mapping[str, Any]) -> None:
    from sanakit.files import write_atomically
    from sanakit.pipeline.png import encode_png

    data = encode_png(pixels, settings)
    if path is None:
        say_bytes(data)
    else:
        write_atomically(path, data)


def _report(
    paths: list[Path | None], model: str, seconds: dict[str, float], more: dict[str, Any]
) -> dict[str, Any]:
    return {
        "files": [STANDARD_OUTPUT if path is None else str(path) for path in paths],
        **more,
        "model": model,
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        "peak_memory_mb": _peak_memory_mb(),
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
        say(*names, err=to_error)
        seconds = report["seconds"]
        parts = ", ".join(f"{k} {v:.2f} s" for k, v in seconds.items() if k != "total")
        say(f"{seconds['total']:.2f} s in all: {parts}", err=True)


def _peak_memory_mb() -> float | None:
    """Largest resident memory of this process so far; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # not a POSIX system
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)


@contextmanager
def _progress(stop: StopFlag, *, bar: bool) -> Iterator[OnStep]:
    """What to call after each step: it heeds Ctrl-C, and on a terminal moves a bar."""
    if not (bar and sys.stderr.isatty()):
        yield stop.check
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), Remaining())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("steps", total=None)

        def on_step(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)
            stop.check(done, total)

        yield on_step


class StopFlag:
    """Makes Ctrl-C wait for the end of the step: raises `Interrupted` from :meth:`check`."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> StopFlag:
        self._previous = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:  # the second Ctrl-C does not wait
            raise KeyboardInterrupt
        self.asked = True

    def check(self, done: int, total: int) -> None:
        """End the run if the user asked for it."""
        if self.asked:
            raise Interrupted(f"stopped after step {done} of {total}; nothing was written")


def _strength_of(spec: str) -> tuple[Path, float]:
    """Take ``PATH:STRENGTH`` apart; without a number at the end the strength is one."""
    path, _, text = spec.rpartition(":")
    try:
        found, strength = (path, float(text)) if path else (spec, 1.0)
    except ValueError:
        found, strength = spec, 1.0
    return expanded(found), strength


def _model_behind(specs: Sequence[str]) -> str:
    """The model that a run's LoRA is of, else the embedded one.

    Raises:
        ConfigError: the run began with parts of several models, or with another run.
    """
    for spec in specs:
        run, _ = _strength_of(spec)
        if (run / "run.json").is_file():
            from sanakit.train.recipes.diffusion_run import begun_with_one_model

            start = begun_with_one_model(run)
            if start is None:
                raise ConfigError(
                    f"{run} did not begin with one model",
                    hint="export it whole: sanakit train export RUN --merged",
                )
            # It goes into pictures, which should not tell where on a disk they were made.
            return os.path.relpath(start) if start.startswith(str(Path.cwd())) else start
    return EMBEDDED


def _add_loras(pipeline: Pipeline, specs: Sequence[str]) -> None:
    """Add the adapters to the transformer of a pipeline.

    Raises:
        MissingModelError: no such file, or a run without a checkpoint. WeightsError: a LoRA of
            another model. ConfigError: a run that trained all weights.
    """
    if not specs:
        return
    from sanakit.pipeline.published.sana import SanaPipeline

    pipe = SanaPipeline(pipeline)
    strengths = {}
    for number, spec in enumerate(specs):
        path, strength = _strength_of(spec)
        name = f"lora-{number}"
        if (path / "run.json").is_file():
            from sanakit.train.recipes.diffusion_run import lora_of_run
            from sanakit.weights.lora import lora_tensors

            pipe.load_lora_weights(lora_tensors(lora_of_run(path)), name)
        else:
            pipe.load_lora_weights(str(path), name)
        strengths[name] = strength
    pipe.set_adapters(list(strengths), list(strengths.values()))
