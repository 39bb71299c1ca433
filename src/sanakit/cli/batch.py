"""`sanakit batch`: draw a file of prompts into a folder, and go on where an earlier run ended."""

from __future__ import annotations

import itertools
import json
import time
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sanakit.cli.drawing import (
    Drawer,
    Setup,
    begun,
    check_wanted,
    numbered,
    peak_memory_mb,
    tune,
    write_picture,
)
from sanakit.cli.generate import guider_of
from sanakit.cli.machine import AUTO, Device, Dtype, Machine, Quantize, local_folder
from sanakit.cli.manifest import Manifest
from sanakit.cli.options import (
    ApgEta,
    ApgMomentum,
    ApgNorm,
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
    Quiet,
    Seed,
    Shown,
    Side,
    Solver,
    StepCache,
    Steps,
)
from sanakit.cli.progress import Progress, StopFlag, progress
from sanakit.cli.prompt_file import Faults, PromptLine, inside, read_prompts
from sanakit.cli.terminal import processes, say
from sanakit.errors import ConfigError, Interrupted, SanakitError, SomeFailed, plain
from sanakit.files import disk_errors, expanded, sha256_of

if TYPE_CHECKING:
    from sanakit.pipeline.request import GenerateRequest


FIELDS = {"negative": "negative_prompt", "steps": "num_steps", "guidance": "guidance_scale"}
"""Options that a request has another name for."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One picture of a batch: the line that asks for it, its file, and what draws it."""

    line: int
    path: Path
    file: str
    setup: Setup
    wanted: dict[str, Any]

    def key(self, metadata: bool) -> str:
        """Tell it from a picture that something else was asked of."""
        return sha256_of(json.dumps([self.wanted, asdict(self.setup), metadata], sort_keys=True))

    def request(self) -> GenerateRequest:
        """The request for this picture alone, which draws it as among others."""
        from sanakit.pipeline.request import GenerateRequest

        return GenerateRequest.from_json(self.wanted)


def batch(
    prompts: Annotated[
        Path,
        typer.Argument(
            help="A prompt a line, but # begins a comment: .txt; or with options: .jsonl, .csv."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", "--output", help="Folder of the pictures.")],
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
    solver: Solver = None,
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
    """Draw a picture for each line of a file; what is already there is not drawn again.

    A line's own options come before those given here, which are for all lines.
    """
    started = begun()
    if processes()[1] > 1:
        raise ConfigError(
            "sanakit batch draws in one process", hint="start it without torchrun, once a device"
        )
    usual = {
        "negative": negative,
        "seed": seed,
        "width": width,
        "height": height,
        "steps": steps,
        "guidance": guidance,
        "count": count,
        "solver": solver,
        "model": model,
    }
    more = {
        "guider": guider_of(apg_eta, apg_momentum, apg_norm),
        "guidance_interval": guidance_interval or (0.0, 1.0),
        "step_cache": step_cache,
    }
    setup = Setup(
        model=model,
        machine=Machine(device=device, dtype=dtype, quantize=quantize),
        loras=tuple(lora or ()),
        decoder=decoder,
        offline=offline,
    )
    folder = expanded(out)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {out} is a file, not a folder", hint="name another folder")
    planned = _plan(prompts, folder, usual, more, setup)
    from sanakit.locks import in_use

    with in_use(folder, by="sanakit batch"):
        run = Run(folder, metadata=not no_metadata, quiet=quiet or json_)
        run.draw(planned, shown=False if json_ or quiet else shown)
    seconds = {"load": round(run.loading, 3), "total": round(time.perf_counter() - started, 3)}
    if json_:
        report = {"files": [str(one.path) for one in planned], "drawn": run.drawn}
        report |= {"there": run.there, "failed": run.failed, "seconds": seconds}
        say(json.dumps({**report, "peak_memory_mb": peak_memory_mb()}))
    elif not quiet:
        say(
            f"{run.drawn} drawn, {run.there} there before, {len(run.failed)} failed; "
            f"{seconds['total']:.2f} s in all, {seconds['load']:.2f} s of them loading",
            err=True,
        )
    for failure in run.failed:
        say(f"line {failure['line']}, {failure['file']}: {failure['error']}", err=True)
    if run.failed:
        raise SomeFailed(
            f"{len(run.failed)} of {len(planned)} pictures failed",
            hint="the same command tries them again, and no others",
        )


def _plan(
    prompts: Path,
    folder: Path,
    usual: Mapping[str, Any],
    more: Mapping[str, Any],
    setup: Setup,
) -> list[Planned]:
    """Read and check all lines; give their pictures in the order in which they are drawn.

    Those of one model stand together, so that each model is loaded once.

    Raises:
        SanakitError: of the first line that is wrong.
    """
    from sanakit.pipeline.aspect_ratios import check_count

    faults = Faults(prompts)
    planned: list[Planned] = []
    checked: set[str] = set()
    taken: dict[str, int] = {}
    for line in read_prompts(prompts, faults):
        with faults.of(line.number):
            asked = {**usual, **line.asked}
            own = replace(setup, model=asked["model"])
            wanted = {FIELDS.get(name, name): asked[name] for name in usual if name != "model"}
            # Of lines that differ in words only, the first is held against the model's files.
            about = json.dumps([{**wanted, "seed": 0, "count": 1}, own.model])
            wanted = {"prompt": asked["prompt"], **wanted, **more}
            check_count(wanted["count"], wanted["seed"])
            if about not in checked:
                checked.add(about)
                check_wanted(wanted, own)
            pictures = _pictures(line, folder, wanted, own)
            for one in pictures:
                name = unicodedata.normalize("NFC", one.file).casefold()
                if (first := taken.setdefault(name, line.number)) != line.number:
                    raise ConfigError(
                        f"{one.file} is also the picture of line {first}",
                        hint="give one of them another output",
                    )
            planned += pictures
    faults.tell()
    models = list(dict.fromkeys(one.setup.model for one in planned))
    return sorted(planned, key=lambda one: models.index(one.setup.model))


def _pictures(
    line: PromptLine, folder: Path, wanted: Mapping[str, Any], setup: Setup
) -> list[Planned]:
    """Give the pictures of a line, each with a seed of its own."""
    path = inside(folder, line.asked.get("output", f"{line.number:05}.png"))
    count, seed = wanted["count"], wanted["seed"]
    return [
        Planned(
            line=line.number,
            path=each,
            file=each.relative_to(folder).as_posix(),
            setup=setup,
            wanted={**wanted, "count": 1, "seed": seed + place},
        )
        for place, each in enumerate(numbered(path, count, seed))
    ]


def hashes_of(setup: Setup) -> dict[str, Any]:
    """What tells the weights that a setup names from others; None where they are not here yet."""
    from sanakit.pipeline.components import fingerprint

    folder = local_folder(setup.name, offline=setup.offline)
    return {"model_hash": folder and fingerprint(folder), **setup.noted()}


class Run:
    """Draws what of a batch is not there yet, and keeps what came of each picture."""

    def __init__(self, folder: Path, *, metadata: bool, quiet: bool) -> None:
        self.manifest = Manifest(folder)
        self.metadata, self.quiet = metadata, quiet
        self.there = self.drawn = 0
        self.failed: list[dict[str, Any]] = []
        self.loading = 0.0
        self._hashes: dict[Setup, dict[str, Any]] = {}

    def draw(self, planned: Sequence[Planned], *, shown: bool | None) -> None:
        """Draw the pictures of one model after those of another.

        Raises:
            Interrupted: by Ctrl-C, after the step in flight. SanakitError: a model or an adapter
                that cannot be loaded, or a manifest that cannot be written.
        """
        waiting = [one for one in planned if not self._is_there(one)]
        self.there = len(planned) - len(waiting)
        requests = [one.request() for one in waiting]
        self.manifest.begin({one.file for one in waiting})
        jobs = list(zip(waiting, requests, strict=True))
        with StopFlag() as stop, progress(shown=shown) as bar:
            try:
                for setup, group in itertools.groupby(jobs, lambda job: job[0].setup):
                    self._draw_by(setup, list(group), stop, bar, total=len(jobs))
            except (Interrupted, KeyboardInterrupt):
                done = self.there + self.drawn
                raise Interrupted(
                    f"stopped; {done} of {len(planned)} pictures are there",
                    hint="the same command goes on with the next",
                ) from None

    def _is_there(self, one: Planned) -> bool:
        if one.setup not in self._hashes:
            self._hashes[one.setup] = hashes_of(one.setup)
        return self.manifest.holds(one.file, one.key(self.metadata), self._hashes[one.setup])

    def _draw_by(
        self,
        setup: Setup,
        jobs: Sequence[tuple[Planned, GenerateRequest]],
        stop: StopFlag,
        bar: Progress,
        *,
        total: int,
    ) -> None:
        import torch

        started = time.perf_counter()
        bar.stage("starting")
        requests = [request for _, request in jobs]
        largest = max(requests, key=lambda one: (one.height or 0) * (one.width or 0))
        drawer = Drawer(setup, size=(largest.height, largest.width), quiet=self.quiet)
        bar.stage(f"loading {plain(drawer.model)}")
        pipeline = drawer.load()
        tune(drawer.device, pipeline, *requests)
        self.loading += time.perf_counter() - started
        noted = drawer.noted()

        def on_step(done: int, of: int) -> None:
            bar.step(done, of)
            stop.check(done, of)

        for one, request in jobs:
            place = self.drawn + len(self.failed) + 1
            bar.stage(f"{place}/{total} {plain(one.file)}")
            about = {"line": one.line, "file": one.file, "seed": request.seed}
            began = time.perf_counter()
            try:
                [picture] = pipeline.generate(request, on_step=on_step).pictures
                settings = {**picture.settings, **noted}
                with disk_errors(one.path):
                    one.path.parent.mkdir(parents=True, exist_ok=True)
                inside(self.manifest.folder, one.file)  # no link was laid there meanwhile
                write_picture(one.path, picture.pixels, settings if self.metadata else None)
            except Interrupted:
                raise
            except (SanakitError, MemoryError, torch.OutOfMemoryError) as error:
                self._note_failure(about, error)
                continue
            seconds = round(time.perf_counter() - began, 3)
            record = {**about, "key": one.key(self.metadata), "bytes": one.path.stat().st_size}
            # As `sanakit data` looks for a picture's caption.
            told = {"prompt": settings["prompt"], "settings": settings}
            self.manifest.add({**record, "seconds": seconds, **told})
            self.drawn += 1
            if not self.quiet:
                say(f"{one.path}  seed {request.seed}")

    def _note_failure(self, about: Mapping[str, Any], error: BaseException) -> None:
        message = error.message if isinstance(error, SanakitError) else str(error)
        failure = {**about, "error": plain(message) or type(error).__name__}
        self.failed.append(failure)
        self.manifest.add(failure)
