"""`sanakit quantize`: a model with its large networks in 8 or 4 bits, and what that changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from sanakit.cli.terminal import say
from sanakit.errors import ConfigError

PROMPT = "a red apple"


def quantize(
    model: Annotated[str, typer.Argument(help="Embedded name, folder, or owner/name.")],
    out: Annotated[Path, typer.Option("--out", "-o", "--output", help="Folder to make.")],
    int8: Annotated[
        bool, typer.Option("--int8", help="W8A8: int8 weights, activations rounded as they come.")
    ] = False,
    int4: Annotated[
        bool, typer.Option("--int4", help="4 bits (NF4, by bitsandbytes): smaller, not faster.")
    ] = False,
    fp8: Annotated[
        bool, typer.Option("--fp8", help="Not kept on disk: see generate --quantize fp8.")
    ] = False,
    prompt: Annotated[str, typer.Option(help="What to compare pictures of.")] = PROMPT,
    count: Annotated[
        int, typer.Option("--count", "-n", min=1, help="Pictures, at seeds 0, 1, ...")
    ] = 2,
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Solver steps.")] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Fail rather than download a model.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the folder as a whole.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing.")] = False,
) -> None:
    """Write a model with its large networks quantized, and compare layers and pictures."""
    asked = [name for name, given in {"int8": int8, "int4": int4, "fp8": fp8}.items() if given]
    if len(asked) != 1:
        raise ConfigError(
            f"{' and '.join(f'--{name}' for name in asked) or 'no format'} was asked for",
            hint="pass one of --int8 and --int4",
        )
    if fp8:
        raise ConfigError(
            "--fp8: torchao's weights have no layout on disk",
            hint="sanakit generate --quantize fp8 rounds while loading; --int8 is as small",
        )
    from sanakit.pipeline.quantized_copy import by_kind, quantized_copy
    from sanakit.pipeline.request import GenerateRequest

    told = quantized_copy(
        model,
        out,
        asked[0],
        request=GenerateRequest(prompt=prompt, count=count, num_steps=steps),
        offline=offline,
        force=force,
        report=(lambda line: None) if quiet or json_ else (lambda line: say(line, err=True)),
    )
    if json_:
        say(json.dumps(told))
    elif not quiet:
        _tell(told, by_kind(told), out)


def _tell(told: dict[str, Any], kinds: list[dict[str, Any]], out: Path) -> None:
    say(f"{'layers':52} count  weights mean, worst   outputs mean, worst")
    for row in kinds:
        cells = "".join(
            f"  {'{:7.2%}, {:7.2%}'.format(*row[key]) if key in row else '-':>18}  "
            for key in ("weight", "output")
        )
        say(f"{row['layers']:52} {row['count']:5}{cells}".rstrip())
    for picture in told["pictures"]:
        psnr = "the same" if picture["psnr"] is None else f"{picture['psnr']:.1f} dB"
        say(f"seed {picture['seed']}: {psnr}")
    before, after = told["bytes"]["before"] / 1e6, told["bytes"]["after"] / 1e6
    say(f"{out}: {after:,.1f} MB of weights, from {before:,.1f} MB")
    if after >= before:
        say("which is no smaller: the model's own files are packed already; load it as it is")
