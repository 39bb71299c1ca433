"""`sanakit eval standard`: GenEval, DPG-Bench, CLIP score and FID, as published."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sanakit.cli.errors import friendly_errors
from sanakit.cli.evaluate.options import (
    Device,
    FlowShift,
    Guidance,
    Model,
    Seed,
    Solver,
    Steps,
    draw_settings,
    progress,
    tell,
)
from sanakit.errors import ConfigError

if TYPE_CHECKING:
    from sanakit.evaluate.benchmark_prompts import Job
    from sanakit.evaluate.clip import InceptionFeatures
    from sanakit.evaluate.figures import Figure

Kind = Annotated[
    Literal["geneval", "dpg", "clip", "fid"],
    typer.Option(help="geneval, dpg: draw for their own scorers; clip, fid: draw and score."),
]
Prompts = Annotated[
    Path,
    typer.Option(help="The published list: GenEval's .jsonl, DPG's folder, MJHQ's .json, a .txt."),
]
Each = Annotated[
    int | None, typer.Option("--each", help="Pictures a prompt. Default: as published, 4 or 1.")
]
First = Annotated[
    int | None, typer.Option("--count", "-n", help="Only the first prompts of the list.")
]
Clip = Annotated[
    str | None, typer.Option(help="For clip: folder of a CLIP model, or owner/name on the hub.")
]
Real = Annotated[
    Path | None, typer.Option(help="For fid: real pictures, as `sanakit data scan` reads them.")
]
Side = Annotated[int | None, typer.Option(help="Pixels, a multiple of 32. Default: the model's.")]
StandardOut = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Folder for pictures and figures. Default: by kind."),
]


def standard(
    prompts: Prompts,
    model: Model = "glyph",
    kind: Kind = "geneval",
    each: Each = None,
    count: First = None,
    clip: Clip = None,
    real: Real = None,
    width: Side = None,
    height: Side = None,
    seed: Seed = 0,
    steps: Steps = 20,
    guidance: Guidance = None,
    solver: Solver = None,
    flow_shift: FlowShift = None,
    out: StandardOut = None,
    device: Device = "cpu",
) -> None:
    """Draw a published list of prompts as its scorer reads it; score it where that is done here."""
    with friendly_errors():
        _check(kind, clip, real, count)
        from dataclasses import asdict, replace

        from sanakit.evaluate.benchmark_prompts import (
            PICTURES,
            USUAL,
            draw_jobs,
            jobs_of,
            read_prompts,
        )
        from sanakit.evaluate.clip import InceptionFeatures
        from sanakit.evaluate.figures import Evaluation
        from sanakit.evaluate.figures import Figure as Number
        from sanakit.pipeline.pipeline import Pipeline

        listed = read_prompts(prompts, kind)[:count]
        jobs = jobs_of(listed, kind, each=USUAL[kind] if each is None else each, seed=seed)
        inception = InceptionFeatures(device) if kind == "fid" else None  # before hours of drawing
        folder = Path("runs/eval/standard") / kind if out is None else out
        settings = replace(
            draw_settings(seed, steps, guidance, solver, flow_shift), width=width, height=height
        )
        pipeline = Pipeline.load(model, device=device)
        pictures = draw_jobs(pipeline, jobs, settings, folder, report=progress)
        total = sum(len(job.seeds) for job in jobs)
        figures = [Number(name="pictures", value=float(total), count=len(jobs))]
        scored, details = _scores(
            kind, pictures, jobs, clip=clip, real=real, network=inception, device=device
        )
        evaluation = Evaluation(
            family=f"standard-{kind}",
            model=model,
            data=str(prompts),
            settings={"scorer": SCORERS[kind], "drawing": asdict(settings)},
            figures=[*figures, *scored],
            details=details,
        )
        evaluation.save(folder)
        tell(evaluation, folder)
        if kind in NEXT:
            typer.echo(NEXT[kind].format(folder=folder / PICTURES, each=len(jobs[0].seeds)))


SCORERS = {
    "geneval": "none here: GenEval's evaluate_images.py",
    "dpg": "none here: DPG-Bench's compute_dpg_bench.py",
    "clip": "CLIP score, 100 times the cosine of picture and prompt",
    "fid": "FID by torchmetrics, 2,048 features of Inception",
}
NEXT = {
    "geneval": "next: evaluation/evaluate_images.py {folder} --outfile results.jsonl, of GenEval",
    "dpg": "next: dpg_bench/compute_dpg_bench.py --image-root-path {folder} --pic-num {each} "
    "--resolution SIDE, of DPG-Bench",
}


def _check(kind: str, clip: str | None, real: Path | None, count: int | None) -> None:
    """Refuse an option that the kind does not read, and a kind without what it needs."""
    for name, value, of in (("--clip", clip, "clip"), ("--real", real, "fid")):
        if value is not None and kind != of:
            raise ConfigError(f"{name} with --kind {kind}", hint=f"{name} is for --kind {of}")
        if value is None and kind == of:
            raise ConfigError(
                f"--kind {kind} without {name}",
                hint="--clip FOLDER of CLIPModel.save_pretrained"
                if of == "clip"
                else "--real FOLDER of pictures to compare with",
            )
    if count is not None and count < 1:
        raise ConfigError(f"--count {count}", hint="leave it out to draw the whole list")


def _scores(
    kind: str,
    pictures: Path,
    jobs: list[Job],
    *,
    clip: str | None,
    real: Path | None,
    network: InceptionFeatures | None,
    device: str,
) -> tuple[list[Figure], dict[str, Any]]:
    from sanakit.evaluate.clip import clip_scores, fid, read_drawn
    from sanakit.evaluate.pictures import pictures_to_restore

    if clip is not None:
        figures, by_prompt = clip_scores(pictures, jobs, clip=clip, device=device)
        return figures, {"by prompt": by_prompt}
    if real is not None and network is not None:
        side = min(next(read_drawn(pictures, jobs))[1].shape[:2])
        others = pictures_to_restore(real, size=side)
        return [fid(pictures, jobs, others, network=network)], {}
    return [], {}
