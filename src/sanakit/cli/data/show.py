"""`sanakit data show`: one sample of a set in the terminal."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sanakit.cli.errors import friendly_errors
from sanakit.errors import ConfigError

if TYPE_CHECKING:
    from sanakit.data.samples import Sample
    from sanakit.data.training_set import TrainingSet


def show(
    folder: Annotated[Path, typer.Argument(metavar="SET", help="Folder of a set.")],
    which: Annotated[str, typer.Argument(help="Number of a sample, from 0, or its id.")] = "0",
    save: Annotated[
        Path | None, typer.Option(help="Write the picture, as training sees it, to a PNG.")
    ] = None,
) -> None:
    """Print a sample: id, captions with captioner and score, sizes, bucket, licence."""
    with friendly_errors():
        from PIL import Image

        from sanakit.data.images.decode import decode
        from sanakit.data.images.resize_and_crop import fitted
        from sanakit.data.report.page import encoded, stored_pictures
        from sanakit.data.shards import read_index
        from sanakit.data.sources.places import read_place
        from sanakit.data.training_set import SHARDS, TrainingSet
        from sanakit.files import write_atomically

        training_set = TrainingSet.open(folder)
        sample = _find(training_set, which)
        index = read_index(folder / SHARDS)
        stored = stored_pictures(folder / SHARDS, index, [sample.id]) if index else {}
        _print(sample)
        if sample.id in stored:
            data, bucket = stored[sample.id]
            typer.echo(f"bucket   {bucket[0]} x {bucket[1]}")
        else:
            data, bucket = b"", None
            typer.echo("bucket   none: left out, or not built yet")
        if save is not None:
            data = data or read_place(Path(training_set.source), sample.place)
            pixels = decode(data).pixels
            pixels = pixels if bucket is None else fitted(pixels, bucket)
            write_atomically(save, encoded(Image.fromarray(pixels), "PNG", optimize=True))
            typer.echo(f"saved    {save}, {pixels.shape[0]} x {pixels.shape[1]}")


def _print(sample: Sample) -> None:
    typer.echo(f"id       {_plain(sample.id)}")
    typer.echo(f"picture  {sample.height} x {sample.width}, {_plain(sample.place.file)}")
    typer.echo(f"licence  {_plain(sample.licence) or 'not stated'}")
    for caption in sample.captions:
        score = "" if caption.score is None else f", score {caption.score:.1f}"
        weight = "" if caption.weight == 1 else f", weight {caption.weight:g}"
        typer.echo(f"caption  {_plain(caption.text)}  ({_plain(caption.captioner)}{score}{weight})")
    if not sample.captions:
        typer.echo("caption  none")


def _find(training_set: TrainingSet, which: str) -> Sample:
    """The sample with an id, or else with a number."""
    for unit in training_set.units:
        for sample in training_set.scanned(unit):
            if sample.id == which:
                return next(one for one in training_set.samples(unit) if one.id == which)
    if not which.isdecimal():
        raise ConfigError(
            f"{training_set.folder} holds no sample {which!r}", hint="name one by its number: 0"
        )
    left = int(which)
    for unit in training_set.units:
        here = len(training_set.scanned(unit))
        if left < here:
            return next(islice(training_set.samples(unit), left, None))
        left -= here
    raise ConfigError(
        f"{training_set.folder} holds no sample {which}",
        hint=f"the last one has number {int(which) - left - 1}",
    )


def _plain(text: str) -> str:
    """Without what would move the cursor or colour the terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
