"""`sanakit data score`: how well captions agree with their pictures."""

from __future__ import annotations

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


def score(
    folder: SetFolder,
    model: Annotated[
        str, typer.Option("--model", "-m", help="CLIP or SigLIP: a folder or owner/name.")
    ],
    name: Annotated[
        str | None, typer.Option(help="Name of the scorer. Default: of the model.")
    ] = None,
    batch_size: BatchSize = 32,
    dtype: Dtype = None,
    device: Device = None,
    threads: Threads = 1,
    engine: EngineName = "local",
    workers: Workers = 1,
) -> None:
    """Give every caption 100 times its cosine with the picture; finished parts stay."""
    with friendly_errors():
        from sanakit.data.captions.scoring import Scoring
        from sanakit.data.captions.vision_models import (
            find_vision_model,
            fingerprint_of_folder,
            safe_name,
        )
        from sanakit.data.engines import engine_named
        from sanakit.data.training_set import TrainingSet

        training_set = TrainingSet.open(folder)
        what, where = chosen(dtype, device, batch_size=batch_size, threads=threads)
        stage = Scoring(
            training_set=training_set,
            model=model,
            model_hash=fingerprint_of_folder(find_vision_model(model)),
            name=safe_name(name or model),
            dtype=what,
            device=where,
            batch_size=batch_size,
            threads=threads,
        )
        total = run(stage, training_set.units, engine_named(engine, workers))
        typer.echo(
            f"{stage.name}: {total['scores']} captions scored, {total['cut']} of them longer than "
            f"the model reads; {total['unreadable']} pictures could not be read"
        )
        typer.echo(f"next: sanakit data build {folder}")
