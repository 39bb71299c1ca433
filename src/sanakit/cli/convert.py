"""`sanakit convert`: original checkpoints to folders and back, pickles to safetensors."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sanakit.cli.terminal import say

Dtype = Literal["fp32", "fp16", "bf16"]
# Fields that most configs leave at the published value; a summary is to be read at a glance.
TELLING = [
    "num_layers",
    "num_attention_heads",
    "attention_head_dim",
    "num_cross_attention_heads",
    "caption_channels",
    "sample_size",
    "interpolation_scale",
    "qk_norm",
    "guidance_embeds",
    "latent_channels",
    "encoder_block_out_channels",
    "encoder_layers_per_block",
    "decoder_layers_per_block",
    "block_out_channels",
    "layers_per_block",
    "scaling_factor",
]


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="An original file, or a published folder.")
    ],
    target: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="Folder to make; or a .pth or .safetensors file."),
    ],
    base: Annotated[
        str | None,
        typer.Option(help="Model whose other components complete OUT to a model folder."),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(help="Preset or config.json, in place of what the shapes say."),
    ] = None,
    average: Annotated[
        bool, typer.Option("--average", help="Take a training checkpoint's moving average.")
    ] = False,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Store in this dtype. Default: as it is.")
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option(help="Name inside the weight files, such as fp16, of the folder's side."),
    ] = None,
    attention_clip: Annotated[
        float | None,
        typer.Option(
            help="Bound of self-attention: 65504 if trained in fp16. Default: told by the file's "
            "name, if published."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT as a whole.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing.")] = False,
) -> None:
    """Convert an original checkpoint to a published folder, or back; config from the shapes."""
    from sanakit.weights.convert.conversion import Options, carry_out, plan

    options = Options(
        base=base,
        config=config,
        average=average,
        dtype=dtype,
        variant=variant,
        force=force,
        attention_clip=attention_clip,
    )
    planned = plan(source, target, options)
    if not (json_ or quiet):
        tell(planned.summary())
    if not dry_run:
        with _progress(quiet or json_) as report:
            carry_out(planned, report)
    if json_:
        say(json.dumps({**planned.summary(), "written": not dry_run}))
    elif not quiet:
        say(f"{target}: {'would be' if dry_run else 'is'} written")


def tell(summary: dict[str, Any]) -> None:
    """Say what is converted: kind, components with shape and size, notes."""
    say(f"{summary['source']}: {summary['kind']}")
    for part in summary["parts"]:
        known = f" ({' or '.join(part['presets'])})" if part["presets"] else ""
        say(f"  {part['name']}: {part['class']}{known}")
        say(
            f"    {part['numbers']:,} numbers, {', '.join(part['stored'])}, written "
            f"{part['written']}: {part['bytes'] / 1e6:,.1f} MB"
        )
        shown = [f"{key} {part['config'][key]}" for key in TELLING if key in part["config"]]
        say(f"    {', '.join(shown)}")
    for note in summary["notes"]:
        say(f"  note: {note}")


def _progress(silent: bool) -> AbstractContextManager[Callable[[str], object]]:
    if silent:
        return nullcontext(lambda line: None)
    if not sys.stderr.isatty():
        return nullcontext(partial(say, err=True))
    return _spinner()


@contextmanager
def _spinner() -> Iterator[Callable[[str], object]]:
    """The step at hand and its seconds, on a terminal only."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=None)
        yield lambda line: bar.update(task, description=line)
