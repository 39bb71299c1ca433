"""`sanakit train`: what can be trained; how a run does, its export."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sanakit.cli.terminal import say
from sanakit.errors import ConfigError, Interrupted, SanakitError, Terminated
from sanakit.files import expanded

if TYPE_CHECKING:
    from sanakit.train.loop import Ending
    from sanakit.train.runs.run_config import RunConfig

app = typer.Typer(
    help="Train autoencoders, transformers, control branches, few steps, with a reward; export.",
    no_args_is_help=True,
)
RUNS = Path("runs")
Phase = Literal["full", "latent", "decoder", "refine", "distill"]
Storage = Literal["as-is", "int8-rows"]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder of the run: checkpoints and log.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the last checkpoint, as it was begun.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print what the run would cost; write nothing.")
]
Measure = Annotated[
    bool, typer.Option("--measure/--no-measure", help="With --dry-run: time three steps.")
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Override a setting: --set batch_size=16.")
]
Rate = Annotated[
    float | None,
    typer.Option("--learning-rate", "--lr", help="Learning rate: --set peak_lr."),
]
Steps = Annotated[int | None, typer.Option(help="Steps in all: --set total_images, in batches.")]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", help="Pictures a step: --set batch_size.")
]
Set = Annotated[
    str | None, typer.Option("--data", help="Set that `sanakit data build` made, or its address.")
]
Held = Annotated[str | None, typer.Option(help="Set to measure on, never trained on.")]
Workers = Annotated[int | None, typer.Option(help="Processes that decode pictures.")]
Shown = Annotated[
    list[str] | None,
    typer.Option("--prompt", help="Drawn on the way, to see what is learned; may be repeated."),
]
Run = Annotated[Path, typer.Argument(help="Folder of a run: --out of the training command.")]


@app.command()
def autoencoder(
    data: Annotated[
        str | None, typer.Option(help="Shards that `sanakit data build` made: SET/shards.")
    ] = None,
    out: Out = RUNS / "autoencoder",
    phase: Annotated[
        Phase | None,
        typer.Option(
            help="full (default); latent: what is next to the latents, at high resolution; "
            "decoder; refine: the decoder's head, against a discriminator; distill: a tiny decoder."
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", help="Weights to begin with: a run, glyph, a model or its folder."),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Without --from: the shape to begin with; glyph.")
    ] = None,
    decoder: Annotated[
        str | None, typer.Option(help="Of distill: the new decoder's shape, tiny or taesana.")
    ] = None,
    held: Annotated[str | None, typer.Option(help="Other shards, to measure on.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that decode. Default: none.")
    ] = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    measure: Measure = True,
    learning_rate: Rate = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    settings: Settings = None,
) -> None:
    """Train the deep-compression autoencoder; at the end OUT/vae, or OUT/decoder, holds it."""
    check_dry(dry_run, measure)
    settings = with_options(
        settings, {"peak_lr": learning_rate, "steps": steps, "batch_size": batch_size}
    )
    from sanakit.train.recipes import autoencoder_run
    from sanakit.train.recipes.autoencoder import AutoencoderObjective

    typed = {
        "data": data,
        "phase": phase,
        "start": start,
        "preset": preset,
        "decoder": decoder,
        "held": held,
        "workers": workers,
    }
    run = new_or_resumed(
        autoencoder_run.WHAT,
        AutoencoderObjective,
        autoencoder_run.new_run,
        typed,
        settings,
        resumed=out if resume else None,
    )
    if not dry_run:
        check_free(out, resume=resume)
    recipe = autoencoder_run.build(run)
    if dry_run:
        print_plan(recipe, run, frozen=recipe.frozen, shards=run.data["data"], measure=measure)
        return
    finish = autoencoder_run.finish_autoencoder
    carry_out(recipe, run, out, resume=resume, finish=lambda: finish(recipe, out, report=say))


@app.command()
def diffusion(
    data: Annotated[
        str | None, typer.Option(help="Set that `sanakit data build` made, or shards' address.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", help="Model to begin with: glyph, a folder, owner/name, a run."),
    ] = None,
    lora: Annotated[
        int | None, typer.Option(help="Train a LoRA of this rank instead of all weights.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the run. Default: runs/NAME-OF-THE-SET."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on; without --out with the newest run in runs/.")
    ] = False,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="Drawn on the way, to see what is learned; may be repeated."),
    ] = None,
    held: Annotated[str | None, typer.Option(help="Set to measure on, never trained on.")] = None,
    prior: Annotated[
        str | None,
        typer.Option(help="Set of what must not be forgotten: seen beside --data, half and half."),
    ] = None,
    states: Annotated[
        str | None,
        typer.Option(help="Cached latents and text: auto (if there), live, or cached (only)."),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that decode pictures.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="From scratch: shape of the transformer, sana-0.6b.")
    ] = None,
    autoencoder: Annotated[
        str | None, typer.Option(help="Another autoencoder than that of --from.")
    ] = None,
    text_encoder: Annotated[
        str | None, typer.Option(help="Another text encoder than that of --from: its folder.")
    ] = None,
    instruction: Annotated[
        str | None,
        typer.Option(help='What captions and prompts are read behind; "" for nothing.'),
    ] = None,
    tune_text: Annotated[
        bool | None,
        typer.Option(
            "--tune-text/--freeze-text", help="The text encoder learns along. Default: it does not."
        ),
    ] = None,
    dry_run: DryRun = False,
    measure: Measure = True,
    learning_rate: Rate = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    settings: Settings = None,
) -> None:
    """Train or fine-tune a diffusion transformer, whole or as a LoRA."""
    check_dry(dry_run, measure)
    settings = with_options(
        settings, {"peak_lr": learning_rate, "steps": steps, "batch_size": batch_size}
    )
    from sanakit.train.recipes import diffusion_run
    from sanakit.train.recipes.diffusion import DiffusionObjective
    from sanakit.train.runs.run_config import newest_run, read_run, speaks

    typed = {
        "data": data,
        "start": start,
        "preset": preset,
        "autoencoder": autoencoder,
        "text_encoder": text_encoder,
        "instruction": instruction,
        "tune_text": tune_text,
        "lora": lora,
        "held": held,
        "prior": prior,
        "prompts": prompt,
        "states": states,
        "workers": workers,
    }
    if resume:
        out = out or newest_run(RUNS, diffusion_run.WHAT)
        read_run(out)  # without it nothing is known of the run
    run = new_or_resumed(
        diffusion_run.WHAT,
        DiffusionObjective,
        diffusion_run.new_run,
        typed,
        settings,
        resumed=out if resume else None,
    )
    out = out or RUNS / Path(run.data["data"].rstrip("/")).name
    if not dry_run:
        check_free(out, resume=resume)
    report = say if speaks() else lambda line: None
    recipe, run = diffusion_run.build(run, report=report)
    if dry_run:
        shards = recipe.pictures.shards
        print_plan(recipe, run, frozen=recipe.frozen, shards=shards, measure=measure)
        return
    carry_out(recipe, run, out, resume=resume)
    if run.objective.lora_rank:
        report(f"draw: sanakit generate PROMPT --lora {out}")
    report(f"next: sanakit train export {out} --out models/{out.resolve().name}")


@app.command()
def controlnet(
    data: Set = None,
    start: Annotated[
        str | None,
        typer.Option("--from", help="Model to be steered: glyph, a folder, owner/name, a run."),
    ] = None,
    condition: Annotated[
        str | None,
        typer.Option(help="What is followed: canny, soft-edges, scribble, or a folder of ID.png."),
    ] = None,
    out: Out = RUNS / "controlnet",
    layers: Annotated[
        int | None, typer.Option(help="Blocks of the branch. Default: seven, if there are.")
    ] = None,
    held: Held = None,
    workers: Workers = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    measure: Measure = True,
    learning_rate: Rate = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    settings: Settings = None,
) -> None:
    """Train a control branch, which makes drawings follow pictures; OUT/controlnet holds it."""
    check_dry(dry_run, measure)
    settings = with_options(
        settings, {"peak_lr": learning_rate, "steps": steps, "batch_size": batch_size}
    )
    from sanakit.train.recipes import controlnet as recipes

    typed = {
        "data": data,
        "start": start,
        "condition": condition,
        "layers": layers,
        "held": held,
        "workers": workers,
    }
    run_recipe(recipes, typed, settings, out, resume=resume, dry_run=dry_run, measure=measure)


@app.command()
def reward(
    data: Annotated[
        str | None, typer.Option(help="Prompts: a text file, one a line, or a set's captions.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", help="Model to be trained: glyph, a folder, owner/name, a run."),
    ] = None,
    judged: Annotated[
        list[str] | None,
        typer.Option(
            "--reward",
            help="What says how good a drawing is: FILE.py:function, module:function, a folder of "
            "CLIP or SigLIP; NAME=0.5 weighs one of several.",
        ),
    ] = None,
    out: Out = RUNS / "reward",
    held: Annotated[
        str | None, typer.Option(help="Other prompts, to measure on; as --data.")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="Drawn on the way, to be looked at; may be repeated.")
    ] = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    measure: Measure = True,
    learning_rate: Rate = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    settings: Settings = None,
) -> None:
    """Post-train a model with a reward: a LoRA that learns from its own drawings (DiffusionNFT)."""
    check_dry(dry_run, measure)
    settings = with_options(
        settings, {"peak_lr": learning_rate, "steps": steps, "batch_size": batch_size}
    )
    from sanakit.train.recipes import reward as recipes

    typed = {
        "data": data,
        "start": start,
        "reward": [recipes.lasting_reward(spec) for spec in judged or ()],
        "held": held,
        "prompts": prompt,
    }
    run_recipe(recipes, typed, settings, out, resume=resume, dry_run=dry_run, measure=measure)


@app.command()
def sprint_teacher(
    data: Set = None,
    start: Annotated[
        str | None,
        typer.Option("--from", help="Model to begin with: glyph, a folder, owner/name, a run."),
    ] = None,
    out: Out = RUNS / "sprint-teacher",
    prompt: Shown = None,
    held: Held = None,
    workers: Workers = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    measure: Measure = True,
    learning_rate: Rate = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    settings: Settings = None,
) -> None:
    """Make the teacher of a model of few steps out of a model; OUT is at its end a model, too."""
    check_dry(dry_run, measure)
    settings = with_options(
        settings, {"peak_lr": learning_rate, "steps": steps, "batch_size": batch_size}
    )
    from sanakit.train.recipes import sprint_teacher as recipes

    typed = {"data": data, "start": start, "prompts": prompt, "held": held, "workers": workers}
    run_recipe(recipes, typed, settings, out, resume=resume, dry_run=dry_run, measure=measure)


@app.command()
def sprint(
    data: Set = None,
    start: Annotated[
        str | None,
        typer.Option("--from", help="Teacher: a run of sprint-teacher, a folder, owner/name."),
    ] = None,
    out: Out = RUNS / "sprint",
    prompt: Shown = None,
    held: Held = None,
    workers: Workers = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    measure: Measure = True,
    learning_rate: Rate = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    settings: Settings = None,
) -> None:
    """Distil a teacher into a model that draws in one to four steps; OUT is it, at its end."""
    check_dry(dry_run, measure)
    settings = with_options(
        settings, {"peak_lr": learning_rate, "steps": steps, "batch_size": batch_size}
    )
    from sanakit.train.recipes import sprint as recipes

    typed = {"data": data, "start": start, "prompts": prompt, "held": held, "workers": workers}
    run_recipe(recipes, typed, settings, out, resume=resume, dry_run=dry_run, measure=measure)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write. Default: models/NAME.")
    ] = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="Of a LoRA: the whole model with it inside.")
    ] = False,
    storage: Annotated[
        Storage, typer.Option(help="as-is (fp32, every library reads it) or int8-rows (a quarter).")
    ] = "as-is",
) -> None:
    """Write what a run learned: a model in the published layout, or the file of a LoRA."""
    from sanakit.train.recipes.diffusion_run import export_run

    folder = out or Path("models") / run.resolve().name
    written = export_run(run, folder, storage=storage, merged=merged)
    option = "--model" if written == folder else "--lora"
    say(f"{written}: draw with `sanakit generate PROMPT {option} {folder}`")


@app.command()
def show(run: Run) -> None:
    """Tell how far a run is, its losses, its checkpoints and whether they are whole."""
    from sanakit.train.runs.summary import summary_of_run

    for line in summary_of_run(expanded(run)).lines():
        say(line)


@app.command()
def plot(
    run: Run,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="SVG to write. Default: RUN/curves.svg.")
    ] = None,
    log_x: Annotated[bool, typer.Option("--log-x", help="Images seen in powers of ten.")] = False,
) -> None:
    """Draw the curves of a run's log as one SVG."""
    from sanakit.errors import DataError
    from sanakit.files import write_atomically
    from sanakit.train.runs.curves import curves
    from sanakit.train.runs.log import LOG, read_log

    run = expanded(run)
    target = out or run / "curves.svg"
    if target.suffix.lower() != ".svg":
        raise ConfigError(f"--out {target}: curves are drawn as SVG", hint="name it *.svg")
    if not (run / LOG).is_file():
        raise DataError(f"{run} holds no {LOG}", hint="name the folder of a run")
    drawn = curves(read_log(run), title=run.resolve().name, log_x=log_x)
    write_atomically(target, drawn.encode())
    say(f"{target}")


def with_options(settings: list[str] | None, options: Mapping[str, float | None]) -> list[str]:
    """The pairs of ``--set`` and those of options that are settings by other names."""
    pairs = list(settings or [])
    for key, value in options.items():
        if value is None:
            continue
        for pair in pairs:
            name, _, text = pair.partition("=")
            if name == key and text != str(value) and not _equal(text, value):
                option = "learning-rate" if key == "peak_lr" else key.replace("_", "-")
                raise ConfigError(
                    f"--{option} {value} and --set {pair} differ", hint="leave one of them out"
                )
        pairs.append(f"{key}={value}")
    return pairs


def _equal(text: str, value: float) -> bool:
    try:
        return float(text) == value
    except ValueError:
        return False


def check_free(out: Path, *, resume: bool) -> None:
    """Refuse a folder that another run has or works in, before anything is loaded."""
    from sanakit.locks import in_use
    from sanakit.train.runs.run_config import check_folder, speaks

    if speaks() and out.is_dir():
        with in_use(out, by="sanakit train"):
            check_folder(out, resume=resume)


def run_recipe(
    recipes: Any,
    typed: dict[str, Any],
    settings: list[str],
    out: Path,
    *,
    resume: bool,
    dry_run: bool,
    measure: bool,
) -> None:
    """Plan or carry out a run of a recipe, ``recipes`` being its module."""
    from sanakit.train.runs.run_config import speaks

    what = (recipes.WHAT, recipes.OBJECTIVE, recipes.new_run)
    run = new_or_resumed(*what, typed, settings, resumed=out if resume else None)
    if not dry_run:
        check_free(out, resume=resume)
    recipe, run = recipes.build(run, report=say if speaks() else lambda line: None)
    if dry_run:
        print_plan(recipe, run, frozen=recipe.frozen, shards=recipe.shards, measure=measure)
        return
    carry_out(
        recipe, run, out, resume=resume, finish=lambda: recipes.finish(recipe, out, report=say)
    )


def carry_out(
    recipe: Any,
    run: RunConfig,
    out: Path,
    *,
    resume: bool,
    finish: Callable[[], object] = lambda: None,
) -> None:
    """Note what the run is, train, and ``finish`` where it has reached its end."""
    from sanakit.train.loop import train
    from sanakit.train.runs.run_config import save_run

    with running(out, run.what):
        save_run(run, out, resume=resume)
        ended = train(recipe, run.loop, out, resume=resume, report=say)
        if ended:
            finish()
    if not ended:
        raise stopped(out, run.what, ended)


@contextmanager
def running(out: Path, what: str) -> Iterator[None]:
    """Keep a run's folder to this process; Ctrl-C between steps and saves loses nothing saved."""
    from sanakit.locks import in_use
    from sanakit.train.runs.run_config import speaks

    with in_use(out, by=f"sanakit train {what}") if speaks() else nullcontext():
        try:
            yield
        except KeyboardInterrupt:
            raise stopped(out, what) from None


def stopped(out: Path, what: str, ending: Ending | None = None) -> SanakitError:
    """The end of a run that was told to stop before its last step; None is by Ctrl-C."""
    from sanakit.train.checkpoint import checkpoints
    from sanakit.train.loop import Ending

    kind = Terminated if ending is Ending.TERMINATED else Interrupted
    saved = checkpoints(out)
    if not saved:
        return kind(f"stopped before anything was saved in {out}")
    images = int(saved[-1].name.rpartition("-")[2])
    return kind(
        f"stopped; {out} holds what was learned of {images:,} images",
        hint=f"go on: sanakit train {what} --resume --out {shlex.quote(str(out))}",
    )


def new_or_resumed(
    what: str,
    objective: type | None,
    new_run: Callable[[dict[str, Any], list[str]], RunConfig],
    typed: dict[str, Any],
    settings: list[str] | None,
    *,
    resumed: Path | None,
) -> RunConfig:
    """The run that was typed: a new one, or the one in ``resumed`` with what is typed now."""
    from sanakit.train.runs.run_config import is_run, load_run

    if resumed is None or not is_run(resumed):
        return new_run(typed, settings or [])
    return load_run(resumed, what, objective).resumed_with(typed, settings or [])


def check_dry(dry_run: bool, measure: bool) -> None:
    """Refuse options of ``--dry-run`` that have no meaning here."""
    if not measure and not dry_run:
        raise ConfigError("--no-measure is of --dry-run", hint="give both, or neither")
    if dry_run and "WORLD_SIZE" in os.environ:
        raise ConfigError(
            "--dry-run measures one rank", hint="run it without torchrun: it plans many from one"
        )


def print_plan(
    recipe: Any, run: RunConfig, *, measure: bool, frozen: Any = (), shards: Any = None
) -> None:
    """Print what a run would cost."""
    from sanakit.train.distributed.ranks import join_ranks
    from sanakit.train.runs.plan import plan_of

    device = join_ranks(run.loop.device).device
    plan = plan_of(recipe, run.loop, device=device, frozen=frozen, shards=shards, measure=measure)
    for line in plan.lines():
        say(line)
