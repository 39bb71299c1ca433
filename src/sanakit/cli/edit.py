"""`sanakit edit`: draw a picture anew from another one, whole or where a mask is white."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sanakit.cli.best_of import choice_of
from sanakit.cli.control import as_told, control_of
from sanakit.cli.drawing import EMBEDDED, Setup
from sanakit.cli.generate import draw, guider_of, output_paths
from sanakit.cli.known import is_of_few_steps
from sanakit.cli.machine import AUTO, Device, Dtype, Machine, Quantize
from sanakit.cli.options import (
    USUAL_STEPS,
    ApgEta,
    ApgMomentum,
    ApgNorm,
    BestOf,
    ControlImage,
    ControlKind,
    ControlNet,
    ControlScale,
    Count,
    Decoder,
    GuidanceInterval,
    GuidanceScale,
    Json,
    Lora,
    Model,
    Negative,
    NoMetadata,
    Offline,
    Prompt,
    Quiet,
    Scorer,
    Seed,
    Shown,
    Side,
    Solver,
    StepCache,
    Steps,
)
from sanakit.errors import ConfigError
from sanakit.files import expanded
from sanakit.untrusted import shown as shown_value
from sanakit.untrusted import whole_number


def edit(
    image: Annotated[Path, typer.Argument(help="The picture to begin with.")],
    prompt: Prompt,
    mask: Annotated[
        Path | None,
        typer.Option(help="Picture of the same size, white where it is drawn anew."),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            help="How far from the picture, above 0 up to 1. Default: 0.6; 1 with --mask or "
            "--expand."
        ),
    ] = None,
    expand: Annotated[
        str | None,
        typer.Option(
            help="Pixels of canvas to add and draw, LEFT,TOP,RIGHT,BOTTOM; one number is all four."
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", "--output", help="PNG to write. Default: NAME-edited.png."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="--out may be IMAGE or the mask.")
    ] = False,
    model: Model = None,
    lora: Lora = None,
    seed: Seed = 0,
    steps: Steps = None,
    guidance: GuidanceScale = None,
    apg_eta: ApgEta = None,
    apg_momentum: ApgMomentum = None,
    apg_norm: ApgNorm = None,
    guidance_interval: GuidanceInterval = None,
    step_cache: StepCache = 0.0,
    negative: Negative = "",
    width: Side = None,
    height: Side = None,
    count: Count = 1,
    best_of: BestOf = None,
    scorer: Scorer = None,
    solver: Solver = None,
    control: ControlImage = None,
    control_kind: ControlKind = "none",
    control_scale: ControlScale = 1.0,
    controlnet: ControlNet = None,
    decoder: Decoder = None,
    offline: Offline = False,
    device: Device = AUTO,
    dtype: Dtype = None,
    quantize: Quantize = None,
    no_metadata: NoMetadata = False,
    shown: Shown = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw a picture anew: all of it, where a mask is white, or onto a larger canvas."""
    if strength is not None and not 0 < strength <= 1:
        raise ConfigError(f"--strength {strength:g} must be above 0, up to 1", hint="0.6 is usual")
    total = USUAL_STEPS if steps is None else steps
    none_left = strength is not None and int(total * strength) < 1
    if none_left and not is_of_few_steps(model or EMBEDDED, offline=offline):
        raise ConfigError(
            f"--strength {strength:g} of --steps {total} leaves no step to run",
            hint=f"--strength {1 / total:.2g} runs one",
        )
    sides = _sides(expand)
    request: dict[str, Any] = {"strength": strength, "expand": sides}
    request |= _pictures(image, mask, sides)
    target = out or str(image.with_name(f"{image.stem}-edited.png"))
    numbered = count if best_of is None or count == 1 else best_of
    for path in output_paths(target, numbered, seed):
        if not overwrite and path is not None and path.exists():
            _keep(path, image, mask)
    draw(
        {
            "prompt": prompt,
            "negative_prompt": negative,
            "seed": seed,
            "count": count,
            "height": height,
            "width": width,
            "num_steps": steps,
            "guidance_scale": guidance,
            "guider": guider_of(apg_eta, apg_momentum, apg_norm),
            "guidance_interval": guidance_interval or (0.0, 1.0),
            "step_cache": step_cache,
            "solver": solver,
            "control": control_of(control, control_kind, control_scale, controlnet),
            "edit": request,
        },
        Setup(
            model=model,
            machine=Machine(device=device, dtype=dtype, quantize=quantize),
            loras=lora or [],
            controlnet=controlnet,
            decoder=decoder,
            offline=offline,
        ),
        out=target,
        choice=choice_of(best_of, scorer, count),
        metadata=not no_metadata,
        shown=shown,
        json_=json_,
        quiet=quiet,
    )


def _sides(text: str | None) -> list[int]:
    """``LEFT,TOP,RIGHT,BOTTOM``, or one number for all four."""
    sides = [side for part in (text or "0").split(",") if (side := whole_number(part)) is not None]
    if len(sides) not in (1, 4) or len(sides) != (text or "0").count(",") + 1:
        raise ConfigError(
            f"--expand {shown_value(text)} is not LEFT,TOP,RIGHT,BOTTOM in pixels",
            hint="--expand 0,0,128,0 adds 128 at the right",
        )
    return sides * 4 if len(sides) == 1 else sides


def _pictures(image: Path, mask: Path | None, sides: list[int]) -> dict[str, str]:
    """Paths and digests of both files, which are refused before torch is loaded if they must be."""
    from sanakit.images.files import LIMITS, digest_of, read_image
    from sanakit.pipeline.aspect_ratios import check_canvas, check_proportions

    found: dict[str, str] = {}
    sizes = []
    for name, path in (("image", image), ("mask", mask)):
        if path is not None:
            found |= {name: as_told(path), f"{name}_sha256": digest_of(path)}
            sizes.append(read_image(path).size[::-1])
    check_proportions("the mask", sizes[-1], sizes[0])
    left, top, right, bottom = sides
    grown = (sizes[0][0] + top + bottom, sizes[0][1] + left + right)
    check_canvas(f"--expand {left},{top},{right},{bottom}", *grown, LIMITS.max_pixels)
    return found


def _keep(out: Path, image: Path, mask: Path | None) -> None:
    for given in (image, mask):
        if given is not None and out.samefile(expanded(str(given))):
            raise ConfigError(
                f"--out {out} is what is edited", hint="name another file, or add --overwrite"
            )
