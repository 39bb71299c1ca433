"""`sanakit prune`: a model with fewer blocks of its transformer, to be fine-tuned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from sanakit.cli.terminal import say

PROMPTS = (
    "a red apple on a wooden table",
    "a cat face",
    "two yellow ducks on a lake",
    "a snowy mountain at sunset",
    "a portrait of an old man, oil painting",
    "a house with a blue door",
    "a bicycle leaning on a wall, photograph",
    "a bowl of noodles seen from above",
)


def prune(
    model: Annotated[str, typer.Argument(help="Embedded name, folder, or owner/name.")],
    blocks: Annotated[int, typer.Option(min=1, help="Blocks of the transformer to keep.")],
    out: Annotated[Path, typer.Option("--out", "-o", "--output", help="Folder to make.")],
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="Drawn to see what each block does; may be repeated. Default: eight."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Solver steps.")] = None,
    storage: Annotated[
        Literal["as-is", "int8-rows"], typer.Option(help="As of `sanakit train export`.")
    ] = "as-is",
    offline: Annotated[
        bool, typer.Option("--offline", help="Fail rather than download a model.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the folder as a whole.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a model without the blocks that do least; `sanakit train diffusion` mends it."""
    from sanakit.pipeline.pruned_copy import pruned_copy
    from sanakit.pipeline.request import GenerateRequest

    told = pruned_copy(
        model,
        out,
        blocks,
        requests=[GenerateRequest(prompt=each, num_steps=steps) for each in prompt or PROMPTS],
        storage=storage,
        offline=offline,
        force=force,
        report=(lambda line: None) if json_ else (lambda line: say(line, err=True)),
    )
    if json_:
        say(json.dumps(told))
        return
    for index, value in enumerate(told["importance"]):
        say(f"block {index:2}  {value:.4f}  {'kept' if index in told['kept'] else 'left out'}")
    before, after = told["weights"]["before"], told["weights"]["after"]
    say(f"{out}: {after:,} weights of the transformer, from {before:,}")
    say(f"mend it: sanakit train diffusion --data SET --from {out}")
