"""`sanakit data caption`: captions by models of `transformers`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from sanakit.cli.data.running import (
    BatchSize,
    Device,
    Dtype,
    EngineName,
    SetFolder,
    Threads,
    Workers,
    chosen,
    run,
)
from sanakit.cli.errors import friendly_errors


def caption(
    folder: SetFolder,
    model: Annotated[
        list[str], typer.Option("--model", "-m", help="Folder or owner/name; may be repeated.")
    ],
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="What to ask; may be repeated, each is a captioner of its own. "
            'Default: "Describe the picture in one sentence.", or nothing where models do not chat.'
        ),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(help="Name of the captioner. Default: of the model, and -2, -3 for prompts."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Most new tokens of a caption.")] = 120,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest of this share.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the drawing.")] = 0,
    side: Annotated[int, typer.Option(help="Shrink pictures to this many pixels first.")] = 1024,
    batch_size: BatchSize = 8,
    dtype: Dtype = None,
    device: Device = None,
    threads: Threads = 1,
    engine: EngineName = "local",
    workers: Workers = 1,
) -> None:
    """Let models describe every picture of a set; finished parts are not done again."""
    with friendly_errors():
        from sanakit.data.captions.captioning import Captioning, Writing, captioner_names
        from sanakit.data.captions.vision_models import find_vision_model, fingerprint_of_folder
        from sanakit.data.engines import running_engine
        from sanakit.data.training_set import TrainingSet

        writing = Writing(
            max_new_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, side=side
        )
        training_set = TrainingSet.open(folder)
        what, where = chosen(dtype, device, batch_size=batch_size, threads=threads)
        planned = captioner_names(model, prompt or [None], name or [])
        hashes = {one: fingerprint_of_folder(find_vision_model(one)) for one in model}
        with running_engine(engine, workers) as runs:
            for one, asked, called in planned:
                stage = Captioning(
                    training_set=training_set,
                    model=one,
                    model_hash=hashes[one],
                    name=called,
                    writing=replace(writing, prompt=asked),
                    dtype=what,
                    device=where,
                    batch_size=batch_size,
                    threads=threads,
                )
                total = run(stage, training_set.units, runs)
                typer.echo(
                    f"{called}: {total['captions']} captions, {total['cut']} cut at {max_tokens} "
                    f"tokens; pictures without: {total['empty']} of which it said nothing, "
                    f"{total['unreadable']} that could not be read"
                )
        typer.echo(f"next: sanakit data score {folder} --model CLIP")
