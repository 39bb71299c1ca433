"""`sanakit info` and `sanakit again`: read the settings inside a picture, and redo it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from sanakit.cli.errors import friendly_errors
from sanakit.cli.generate import output_paths, run, tell
from sanakit.errors import ConfigError

ABOUT_THE_FILE = ("model", "model_hash", "version", "format", "lora")


def info(
    image: Annotated[Path, typer.Argument(help="A PNG that sanakit wrote.")],
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print the settings stored inside a picture."""
    with friendly_errors():
        from sanakit.pipeline.png import read_settings

        settings = read_settings(image)
        if json_:
            print(json.dumps(settings))
            return
        wide = max(len(key) for key in settings)
        for key, value in settings.items():
            shown = value if isinstance(value, str) else json.dumps(value)
            print(f"{key:<{wide}}  {shown}")


def again(
    image: Annotated[Path, typer.Argument(help="A PNG that sanakit wrote.")],
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="PNG to write. Default: NAME-again.png.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Another model than the one stored.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing.")] = False,
) -> None:
    """Draw a picture again from the settings inside it; the same bits on the same machine."""
    with friendly_errors():
        from sanakit.pipeline.pipeline import GenerateRequest
        from sanakit.pipeline.png import read_settings

        settings = read_settings(image)
        wanted = {k: v for k, v in settings.items() if k not in ABOUT_THE_FILE}
        request = GenerateRequest.from_json(wanted)
        name = model or settings.get("model")
        if name is None:
            raise ConfigError(f"{image}: does not say its model", hint="name one with --model")
        target = out or str(image.with_name(f"{image.stem}-again.png"))
        report = run(
            request,
            model=name,
            paths=output_paths(target, 1, request.seed),
            bar=not quiet,
            loras=_loras(settings, image),
        )
        _warn_of_another_model(settings, name)
        if json_:
            print(json.dumps(report))
        elif not quiet:
            tell(report)


def _loras(settings: dict[str, Any], image: Path) -> list[str]:
    found = settings.get("lora", [])
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise ConfigError(f"{image}: its setting 'lora' is no list of names")
    return found


def _warn_of_another_model(settings: dict[str, Any], name: str) -> None:
    from sanakit.pipeline.components import fingerprint
    from sanakit.weights.resolve import resolve_model

    stored = settings.get("model_hash")
    if stored and fingerprint(resolve_model(name)) != stored:
        typer.echo(
            f"note: the weights of {name!r} are not those that drew it; the picture differs",
            err=True,
        )
