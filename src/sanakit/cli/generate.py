"""`sanakit generate`: parse, ask the core, write PNGs whole, report."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sanakit.cli import adapters
from sanakit.cli.errors import friendly_errors
from sanakit.errors import ConfigError, Interrupted

if TYPE_CHECKING:
    from sanakit.pipeline.pipeline import GenerateRequest, GenerateResult, OnStep

STANDARD_OUTPUT = "-"
SOLVER_HELP = (
    "flow-dpm-solver (-1, -3: other orders), flow-unipc (-3), flow-euler or flow-heun. "
    "Default: the model's."
)


def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw. Empty: whatever comes.")],
    out: Annotated[
        str, typer.Option("--out", "-o", help="PNG file to write; - is standard output.")
    ] = "out.png",
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Embedded name, folder, or owner/name. Default: glyph."),
    ] = None,
    lora: Annotated[list[str] | None, typer.Option(help=adapters.HELP)] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same picture.")] = 0,
    steps: Annotated[int, typer.Option(help="Solver steps.")] = 20,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance scale; 1 is off. Default: the model's.")
    ] = None,
    negative: Annotated[str, typer.Option(help="What to keep out of the picture.")] = "",
    width: Annotated[
        int | None, typer.Option(help="Pixels, a multiple of 32. Default: the model's.")
    ] = None,
    height: Annotated[
        int | None, typer.Option(help="Pixels, a multiple of 32. Default: the model's.")
    ] = None,
    count: Annotated[
        int, typer.Option("--count", "-n", help="Pictures, at seeds SEED, SEED+1, ...")
    ] = 1,
    solver: Annotated[str | None, typer.Option(help=SOLVER_HELP)] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Fail rather than download a model.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing.")] = False,
) -> None:
    """Draw pictures from a prompt and store all settings inside them."""
    with friendly_errors():
        paths = output_paths(out, count, seed)
        from sanakit.pipeline.pipeline import GenerateRequest

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
        report = run(
            request,
            model=adapters.model_behind(model, loras),
            paths=paths,
            bar=not (json_ or quiet),
            offline=offline,
            loras=loras,
        )
        if json_:
            # A picture on standard output leaves standard error for the report.
            print(json.dumps(report), file=sys.stderr if out == STANDARD_OUTPUT else sys.stdout)
        elif not quiet:
            tell(report)


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
    path = Path(out).expanduser()
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


def run(
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
    stop = StopFlag()
    with stop:
        from sanakit.files import write_atomically
        from sanakit.pipeline.pipeline import Pipeline
        from sanakit.pipeline.png import encode_png

        pipeline = Pipeline.load(model, offline=offline)
        adapters.put_on(pipeline, loras)
        loaded = time.perf_counter()
        result = _draw(pipeline, request, stop, bar=bar)
        files = []
        for picture, path in zip(result.pictures, paths, strict=True):
            more = {"lora": list(loras)} if loras else {}
            data = encode_png(picture.pixels, {**picture.settings, **more})
            if path is None:
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
            else:
                write_atomically(path, data)
            files.append("-" if path is None else str(path))
    seconds = {"load": loaded - started, **result.seconds, "total": time.perf_counter() - started}
    return {
        "files": files,
        "seed": request.seed,
        "seeds": [picture.settings["seed"] for picture in result.pictures],
        "model": model,
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        "peak_memory_mb": peak_memory_mb(),
    }


def _draw(pipeline: Any, request: GenerateRequest, stop: StopFlag, *, bar: bool) -> GenerateResult:
    if not (bar and sys.stderr.isatty()):
        return pipeline.generate(request, on_step=stop.check)
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (
        TextColumn("drawing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.1f} steps/s"),
        Remaining(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("steps", total=None, rate=0.0)
        began = time.perf_counter()

        def on_step(done: int, total: int) -> None:
            rate = done / max(1e-9, time.perf_counter() - began)
            progress.update(task, completed=done, total=total, rate=rate)
            stop.check(done, total)

        hook: OnStep = on_step
        return pipeline.generate(request, on_step=hook)


def tell(report: dict[str, Any]) -> None:
    """Say in a line a file what was written and how long it took."""
    seconds = report["seconds"]
    for file, seed in zip(report["files"], report["seeds"], strict=True):
        where = sys.stderr if file == STANDARD_OUTPUT else sys.stdout
        print(f"{file}  seed {seed}", file=where)
    parts = ", ".join(f"{k} {seconds[k]:.2f} s" for k in ("load", "text", "denoise", "decode"))
    print(f"{seconds['total']:.2f} s in all: {parts}", file=sys.stderr)


def peak_memory_mb() -> float | None:
    """Largest resident memory of this process so far; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # not a POSIX system
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)


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
