"""Options that several verbs of drawing share, each spelled once. Nothing here may load torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SOLVERS = (
    "flow-dpm-solver",
    "flow-dpm-solver-1",
    "flow-dpm-solver-3",
    "flow-euler",
    "flow-heun",
    "flow-unipc",
    "flow-unipc-3",
)
"""The names of `schedulers.NAMED`, known before torch is."""
Prompt = Annotated[str, typer.Argument(help="What to draw. Empty: whatever comes.")]
Model = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Embedded name, folder, or owner/name. Default: glyph."),
]
Lora = Annotated[
    list[str] | None,
    typer.Option(
        help="LoRA to draw with: a run, a folder or a file; FILE:0.7 weighs it. May be repeated."
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Same seed, same picture.")]
USUAL_STEPS = 20
Steps = Annotated[
    int | None,
    typer.Option(min=1, max=1000, help="Solver steps. Default: 20, or 2 of Sprint models."),
]
GuidanceScale = Annotated[
    float | None, typer.Option(min=0, help="Guidance scale; 1 is off. Default: the model's.")
]
ApgEta = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Adaptive projected guidance: weight of the part that saturates colours. 1 keeps "
        "it; 0 is advised where --guidance is high.",
    ),
]
ApgMomentum = Annotated[
    float | None,
    typer.Option(min=-1, max=1, help="Weight of the steps before; -0.5 is advised. Default: 0"),
]
ApgNorm = Annotated[
    float | None,
    typer.Option(min=0, help="Norm that what guides is cut to; 0 is off. Default: 15"),
]
GuidanceInterval = Annotated[
    tuple[float, float] | None,
    typer.Option(
        metavar="LO HI",
        help="Noise levels, 1 where drawing begins and 0 where it ends, between which it is "
        "guided; elsewhere a step takes half the time. Default: 0 1",
    ),
]
StepCache = Annotated[
    float,
    typer.Option(
        min=0,
        help="Take over most of a step from the one before where it changes less than this; 0.1 "
        "is usual, 0 is off.",
    ),
]
Negative = Annotated[
    str,
    typer.Option("--negative", "--negative-prompt", help="What to keep out of the picture."),
]
Count = Annotated[
    int,
    typer.Option(
        "--count", "-n", "--num-images", min=1, help="Pictures, at seeds SEED, SEED+1, ..."
    ),
]
BestOf = Annotated[
    int | None,
    typer.Option(
        "--best-of",
        min=1,
        help="Draw so many, at seeds SEED, SEED+1, ..., and keep the --count best by --scorer.",
    ),
]
Scorer = Annotated[
    str | None,
    typer.Option(help="What says which are best: a model of CLIP, or FILE.py:function."),
]
CONTROL_KINDS = ("none", "canny", "scribble", "soft-edges")
"""The values of `request.ControlKind`, known before torch is."""
ControlImage = Annotated[
    Path | None, typer.Option("--control", help="Picture to follow, by a control branch.")
]
ControlKind = Annotated[
    str,
    typer.Option(
        help="What to make of --control first: canny, scribble, soft-edges; none: it is ready."
    ),
]
ControlScale = Annotated[
    float, typer.Option(min=0, help="How strongly --control is followed; 0 is not at all.")
]
ControlNet = Annotated[
    str | None,
    typer.Option(
        "--controlnet", help="Control branch: folder, or owner/name. Default: the model's own."
    ),
]
Decoder = Annotated[
    str | None,
    typer.Option(
        help="Decode with another decoder of the same latents: the folder of a tiny one or of the "
        "run that made it, or an autoencoder such as dc-ae-lite-f32c32-sana-1.1."
    ),
]
Solver = Annotated[
    str | None,
    typer.Option(
        "--solver",
        "--scheduler",
        help="flow-dpm-solver (-1, -3: other orders), flow-unipc (-3), flow-euler or "
        "flow-heun. Default: the model's.",
    ),
]
Offline = Annotated[bool, typer.Option("--offline", help="Fail rather than download a model.")]
Out = Annotated[
    str,
    typer.Option(
        "--out",
        "-o",
        "--output",
        help="PNG file to write, over what is there; - is standard output.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors and notes only.")]
Side = Annotated[
    int | None,
    typer.Option(min=1, help="Pixels, a multiple of 32; of 64 for glyph. Default: the model's."),
]
Shown = Annotated[
    bool | None,
    typer.Option(
        "--progress/--no-progress", help="Show how far it is. Default: on a terminal only."
    ),
]
NoMetadata = Annotated[
    bool, typer.Option("--no-metadata", help="Write no settings into the picture.")
]
