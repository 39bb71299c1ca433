"""Options that several commands of `sanakit eval` share, and how they report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sanakit.evaluate.features import FeatureNetwork
    from sanakit.evaluate.figures import Evaluation
    from sanakit.evaluate.generated import DrawSettings

Model = Annotated[str, typer.Argument(help="Embedded name, folder, or owner/name.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for figures and plots.")]
Cache = Annotated[
    Path, typer.Option(help="Folder of drawn pictures and features, to be used again.")
]
FeatureFolder = Annotated[
    Path | None,
    typer.Option(
        "--features", help="Folder with the wheels of EfficientNet-Lite0, if not installed."
    ),
]
Device = Annotated[str, typer.Option(help="Where networks compute: cpu, cuda, mps.")]
Seed = Annotated[int, typer.Option(help="Of the first picture; the next ones have the next seeds.")]
Steps = Annotated[int, typer.Option(help="Solver steps.")]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale. Default: the model's.")]
Solver = Annotated[str | None, typer.Option(help="Solver. Default: the model's.")]
FlowShift = Annotated[float | None, typer.Option(help="Flow shift. Default: the model's.")]
CACHE = Path("runs/eval/cache")


def progress(line: str) -> None:
    """A line about work in progress: on standard error, which nobody reads figures from."""
    print(line, file=sys.stderr, flush=True)


def feature_network(folder: Path | None, device: str) -> FeatureNetwork:
    """The network of features, on a device."""
    from sanakit.evaluate.features import load_features

    return load_features(folder).to(device)


def draw_settings(
    seed: int, steps: int, guidance: float | None, solver: str | None, flow_shift: float | None
) -> DrawSettings:
    """How to draw, by the names that users know."""
    from sanakit.evaluate.generated import DrawSettings

    return DrawSettings(
        seed=seed, num_steps=steps, guidance_scale=guidance, solver=solver, flow_shift=flow_shift
    )


def tell(evaluation: Evaluation, out: Path) -> None:
    """Print the table, and where the rest is."""
    typer.echo(evaluation.table(), nl=False)
    typer.echo(
        f"\n{out}: " + ", ".join(sorted(path.name for path in out.iterdir() if path.is_file()))
    )
