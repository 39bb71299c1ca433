"""`sanakit eval`: figures with intervals, of an autoencoder and by published benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sanakit.cli.options import GuidanceScale, Json, Seed, Side, Solver, Steps
from sanakit.cli.terminal import say
from sanakit.errors import ConfigError, MissingModelError

if TYPE_CHECKING:
    from sanakit.evaluate.benchmark_prompts import Job
    from sanakit.evaluate.clip import InceptionFeatures
    from sanakit.evaluate.features import FeatureNetwork
    from sanakit.evaluate.figures import Evaluation, Figure
    from sanakit.evaluate.pictures import GenerationSettings, Pictures

app = typer.Typer(
    help="Measure an autoencoder or a model: figures with intervals, as JSON and Markdown.",
    no_args_is_help=True,
)

Model = Annotated[str, typer.Argument(help="Embedded name, folder, or owner/name.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for figures and plots.")]
Cache = Annotated[
    Path, typer.Option(help="Folder of generated pictures and features, to be used again.")
]
FeatureFolder = Annotated[
    Path | None,
    typer.Option(
        "--features", help="Folder with the wheels of EfficientNet-Lite0, if not installed."
    ),
]
Device = Annotated[str, typer.Option(help="Where networks compute: cpu, cuda, mps.")]
FlowShift = Annotated[float | None, typer.Option(help="Flow shift. Default: the model's.")]
CACHE = Path("runs/eval/cache")

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
StandardOut = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Folder for pictures and figures. Default: by kind."),
]


@app.command()
def autoencoder(
    model: Annotated[
        str, typer.Argument(help="Embedded name, run, model, or folder with an autoencoder.")
    ],
    data: Annotated[Path, typer.Option(help="Pictures, as `sanakit data scan` reads them.")],
    size: Annotated[int, typer.Option(help="Side of the squares they are cut to, px.")] = 256,
    count: Annotated[
        int | None, typer.Option("--count", "-n", help="At most so many. Default: all.")
    ] = None,
    out: Out = Path("runs/eval/autoencoder"),
    lpips: Annotated[bool, typer.Option(help="Measure LPIPS, the slowest of all.")] = True,
    rfd: Annotated[bool, typer.Option(help="Measure rFD-EffNetLite0.")] = True,
    features: FeatureFolder = None,
    cache: Cache = CACHE,
    device: Device = "cpu",
) -> None:
    """Encode and decode pictures; say what is left of them, and show the worst and the middle."""
    from sanakit.evaluate.pictures import pictures_to_restore

    measure(
        model,
        pictures_to_restore(data, size=size, count=count),
        data=data,
        out=out,
        lpips=lpips,
        rfd=rfd,
        features=features,
        cache=cache,
        device=device,
    )


def measure(
    model: str,
    pictures: Pictures,
    *,
    data: Path,
    out: Path,
    lpips: bool,
    rfd: bool,
    features: Path | None,
    cache: Path,
    device: str,
) -> None:
    """Measure a model on pictures that were chosen, and print what came out."""
    from sanakit.evaluate.restoration import evaluate_autoencoder
    from sanakit.train.recipes.autoencoder_run import start_autoencoder
    from sanakit.weights.perceptual import load_perceptual

    network = feature_network(features, device) if rfd else None
    try:
        perceptual = load_perceptual() if lpips else None
    except MissingModelError as error:
        raise MissingModelError(
            "LPIPS needs a network that is not installed",
            hint="pip install stlpips-pytorch==0.0.2 (64 MB, BSD-2), or measure without: "
            "--no-lpips",
        ) from error
    evaluation = evaluate_autoencoder(
        start_autoencoder(model).eval().to(device),
        pictures,
        model=model,
        data=str(data),
        out=out,
        perceptual=perceptual,
        features=network,
        cache=cache,
        report=progress,
    )
    tell(evaluation, out)


@app.command()
def generation(
    data: Annotated[
        Path, typer.Option(help="Real pictures: a training set, or as `sanakit data scan` reads.")
    ],
    model: Model = "glyph",
    held: Annotated[
        Path | None,
        typer.Option(help="Pictures never trained on, whose captions are drawn. Default: --data."),
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", help="Captions, one picture each.")] = 100,
    reference: Annotated[int, typer.Option(help="At most so many pictures of --data.")] = 5000,
    width: Side = None,
    height: Side = None,
    seed: Seed = 0,
    steps: Steps = None,
    guidance: GuidanceScale = None,
    solver: Solver = None,
    flow_shift: FlowShift = None,
    out: Out = Path("runs/eval/generation"),
    features: FeatureFolder = None,
    cache: Cache = CACHE,
    device: Device = "cpu",
    json_: Json = False,
) -> None:
    """Draw captions of a set; say how far, as a whole, the pictures lie from real ones."""
    from dataclasses import replace

    from sanakit.evaluate.generation import evaluate_generation
    from sanakit.pipeline.pipeline import Pipeline

    network = feature_network(features, device)  # before hours of drawing
    evaluation = evaluate_generation(
        Pipeline.load(model, device=device),
        network,
        model=model,
        data=data,
        held=held,
        out=out,
        cache=cache,
        count=count,
        reference=reference,
        settings=replace(
            generation_settings(seed, steps, guidance, solver, flow_shift),
            width=width,
            height=height,
        ),
        report=progress,
    )
    if json_:
        say(evaluation.to_json().rstrip())
    else:
        tell(evaluation, out)


@app.command()
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
    steps: Steps = None,
    guidance: GuidanceScale = None,
    solver: Solver = None,
    flow_shift: FlowShift = None,
    out: StandardOut = None,
    device: Device = "cpu",
) -> None:
    """Draw a published list of prompts as its scorer reads it; score it where that is done here."""
    _check(kind, clip, real, count)
    from dataclasses import asdict, replace

    from sanakit.evaluate.benchmark_prompts import (
        PICTURES,
        USUAL,
        generate_jobs,
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
        generation_settings(seed, steps, guidance, solver, flow_shift), width=width, height=height
    )
    pipeline = Pipeline.load(model, device=device)
    pictures = generate_jobs(pipeline, jobs, settings, folder, report=progress)
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
        say(NEXT[kind].format(folder=folder / PICTURES, each=len(jobs[0].seeds)))


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
    from sanakit.evaluate.clip import clip_scores, fid, read_generated
    from sanakit.evaluate.pictures import pictures_to_restore

    if clip is not None:
        figures, by_prompt = clip_scores(pictures, jobs, clip=clip, device=device)
        return figures, {"by prompt": by_prompt}
    if real is not None and network is not None:
        side = min(next(read_generated(pictures, jobs))[1].shape[:2])
        others = pictures_to_restore(real, size=side)
        return [fid(pictures, jobs, others, network=network)], {}
    return [], {}


def progress(line: str) -> None:
    """A line about work in progress, on standard error: standard output is for figures."""
    say(line, err=True)


def feature_network(folder: Path | None, device: str) -> FeatureNetwork:
    """The network of features, on a device."""
    from sanakit.evaluate.features import load_features

    return load_features(folder).to(device)


def generation_settings(
    seed: int,
    steps: int | None,
    guidance: float | None,
    solver: str | None,
    flow_shift: float | None,
) -> GenerationSettings:
    """How to generate, by the names that users know."""
    from sanakit.evaluate.pictures import GenerationSettings

    return GenerationSettings(
        seed=seed, num_steps=steps, guidance_scale=guidance, solver=solver, flow_shift=flow_shift
    )


def tell(evaluation: Evaluation, out: Path) -> None:
    """Print the table, and where the rest is."""
    say(
        *evaluation.table().splitlines(),
        "",
        f"{out}: " + ", ".join(sorted(path.name for path in out.iterdir() if path.is_file())),
    )
