"""`sanakit data encode`: latents and text states of built shards, once for all epochs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sanakit.cli.data.running import (
    BatchSize,
    Device,
    Dtype,
    EngineName,
    Threads,
    Workers,
    chosen,
    run,
)
from sanakit.cli.errors import friendly_errors
from sanakit.errors import ConfigError

if TYPE_CHECKING:
    from sanakit.data.units import Stage

KINDS = ("both", "latents", "text")
STORES = ("float16", "bfloat16")


def encode(
    folder: Annotated[
        Path, typer.Argument(metavar="SET", help="Folder of a set with built shards.")
    ],
    model: Annotated[
        str, typer.Option("--model", "-m", help="glyph, a folder, or owner/name of a SANA model.")
    ],
    what: Annotated[str, typer.Option(help="both, latents or text.")] = "both",
    store: Annotated[str, typer.Option(help="float16, or bfloat16: wider and coarser.")] = (
        "float16"
    ),
    max_tokens: Annotated[int, typer.Option(help="Most tokens of a caption.")] = 300,
    batch_size: BatchSize = 8,
    dtype: Dtype = None,
    device: Device = None,
    threads: Threads = 1,
    engine: EngineName = "local",
    workers: Workers = 1,
) -> None:
    """Compute what the frozen networks of a model make of each shard; finished shards stay."""
    with friendly_errors():
        for option, value, known in (("--what", what, KINDS), ("--store", store, STORES)):
            if value not in known:
                raise ConfigError(
                    f"{option} {value!r} is unknown", hint=f"one of {', '.join(known)}"
                )
        from sanakit.data.encode import (
            NULL,
            LatentEncoding,
            TextEncoding,
            autoencoder_hash,
            built,
            text_encoder_hash,
        )
        from sanakit.data.engines import running_engine
        from sanakit.data.training_set import TrainingSet

        TrainingSet.open(folder)
        index = built(folder)
        chosen_dtype, where = chosen(dtype, device, batch_size=batch_size, threads=threads)
        settings: dict[str, Any] = {
            "set_folder": folder,
            "model": model,
            "dtype": chosen_dtype,
            "storage": store,
            "device": where,
            "batch_size": batch_size,
            "threads": threads,
        }
        stages: list[tuple[Stage, list[str]]] = []
        shards = [shard.unit for shard in index.shards]
        if what != "text":
            latents = LatentEncoding(
                encoder_hash=autoencoder_hash(model), resolution=index.resolution, **settings
            )
            stages.append((latents, shards))
        if what != "latents":
            text = TextEncoding(
                encoder_hash=text_encoder_hash(model), max_tokens=max_tokens, **settings
            )
            stages.append((text, [NULL, *shards]))
        with running_engine(engine, workers) as runs:
            for stage, units in stages:
                typer.echo(_summary(stage.folder, run(stage, units, runs)))


def _summary(folder: Path, total: dict[str, int]) -> str:
    kind, left = ("samples", "unreadable") if "samples" in total else ("captions", "cut")
    count, size, plain = total[kind], total["bytes"], total["plain_bytes"]
    return (
        f"{folder}: {count} {kind}, {total[left]} {left}; {size / 1e6:.1f} MB, "
        f"{size / max(count, 1) / 1e3:.2f} kB each, {plain / max(size, 1):.2f} times smaller than "
        "without compression"
    )
