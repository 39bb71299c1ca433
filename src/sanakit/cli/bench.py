"""`sanakit bench`: seconds, memory and distance to the floor, alone or beside others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sanakit.cli.options import Json
from sanakit.cli.terminal import say
from sanakit.errors import ConfigError, MissingModelError, did_you_mean
from sanakit.files import check_parent, expanded

if TYPE_CHECKING:
    from sanakit.bench.versus import Side

PICTURE = "picture"
DRAWING = "drawing"
STAGES = (PICTURE, DRAWING, "transformer", "step", "decode", "encode")
DRAWING_STEPS = 20
PEERS = ("diffusers", "openvino")
DTYPES = ("float32", "bfloat16")


def bench(
    model: Annotated[
        str,
        typer.Argument(help="Embedded model, folder, or published shape: sana-0.6b, sana1.5-4.8b."),
    ] = "glyph",
    stage: Annotated[
        list[str] | None,
        typer.Option(
            help="picture: end to end, cold and warm. drawing: the same in Python, also by others: "
            "import, load, first and next picture. transformer, step (what the text decides is "
            "computed before), decode, encode: one network. May be repeated. Default: picture."
        ),
    ] = None,
    size: Annotated[
        list[int] | None, typer.Option(min=32, help="Pixels of both sides. May be repeated.")
    ] = None,
    dtype: Annotated[
        list[str] | None, typer.Option(help="float32 or bfloat16. May be repeated.")
    ] = None,
    versus: Annotated[
        list[str] | None,
        typer.Option(help="diffusers or openvino, in turn with ours. May be repeated."),
    ] = None,
    openvino_python: Annotated[
        Path | None,
        typer.Option(help="Python of an environment that has openvino. Default: this one."),
    ] = None,
    layers: Annotated[
        int | None, typer.Option(min=1, help="Blocks of a published shape, where all are too many.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Solver steps of a picture.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each, after a first one.")] = 3,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File that a line of JSON is added to.")
    ] = None,
    json_: Json = False,
) -> None:
    """Measure a model on this machine, beside diffusers or OpenVINO where they are asked for."""
    stages = _known("--stage", stage or [PICTURE], STAGES)
    dtypes = _known("--dtype", dtype or ["float32"], DTYPES)
    peers = _known("--versus", versus or [], PEERS)
    if PICTURE in stages and (peers or size or dtype or layers):
        raise ConfigError(
            "--versus, --size, --dtype and --layers are of a network, not of a picture",
            hint="name one: --stage transformer --stage decode; a picture beside others is "
            "--stage drawing",
        )
    if out is not None:
        check_parent(expanded(out))
    from sanakit.bench.record import append, facts

    records = []
    for record in _measured(
        model,
        stages,
        size or [512],
        dtypes=dtypes,
        peers=peers,
        python=openvino_python,
        layers=layers,
        steps=steps,
        rounds=rounds,
    ):
        if not json_:
            say(*_table(record))
        records.append(record)
    found = {**facts(), "model": model, "layers": layers, "measured": records}
    if out is not None:
        append(expanded(out), found)
    if json_:
        say(json.dumps(found))


def _known(option: str, given: Sequence[str], names: Sequence[str]) -> list[str]:
    for name in given:
        if name not in names:
            raise ConfigError(f"{option} {name!r} is unknown", hint=did_you_mean(name, names))
    return list(dict.fromkeys(given))


def _measured(
    model: str,
    stages: Sequence[str],
    sizes: Sequence[int],
    *,
    dtypes: Sequence[str],
    peers: Sequence[str],
    python: Path | None,
    layers: int | None,
    steps: int | None,
    rounds: int,
) -> Any:
    """Measure stage by stage; gives what is found as it is found."""
    from sanakit.cli.machine import local_folder

    if PICTURE in stages:
        yield _picture(model, steps, rounds)
    networks = [stage for stage in stages if stage != PICTURE]
    if not networks:
        return
    from sanakit.bench.versus import drawn, measured, published, weights_of

    try:
        folder = None if layers is not None else local_folder(model)
    except MissingModelError:
        folder = None
    if folder is None:
        if DRAWING in networks:
            raise ConfigError(
                f"--stage {DRAWING}: {model} has no text encoder here",
                hint="name a whole model on this disk, such as glyph",
            )
        say(f"{model}: random weights of the published shape", err=True)
        place: AbstractContextManager[Path] = weights_of(model, layers=layers, stages=networks)
    else:
        place = published(folder) if peers else nullcontext(folder)
    with place as weights:
        for stage in networks:
            sides = _sides(stage, dtypes, peers, python)
            for size in sizes:
                if stage == DRAWING:
                    count = DRAWING_STEPS if steps is None else steps
                    yield drawn(weights, size, sides, steps=count, rounds=rounds)
                    continue
                yield measured(weights, stage, size, sides, rounds=rounds)


def _picture(model: str, steps: int | None, rounds: int) -> dict[str, Any]:
    from sanakit.bench.picture import cold, warm
    from sanakit.bench.record import summarise

    return {
        "stage": PICTURE,
        "cold": summarise([cold(model, steps=steps) for _ in range(rounds)]),
        "warm": summarise(warm(model, rounds, steps=steps)),
    }


def _sides(
    stage: str, dtypes: Sequence[str], peers: Sequence[str], python: Path | None
) -> list[Side]:
    """Ours first. OpenVINO has one side, in fp32; of `step` peers have none of their own."""
    from sanakit.bench.versus import Side

    if stage == DRAWING and "openvino" in peers:
        raise ConfigError(
            "--versus openvino compiles networks, and no pipeline", hint="--versus diffusers"
        )
    sides = [Side(dtype=dtype) for dtype in dtypes]
    if "diffusers" in peers:
        sides += [Side(library="diffusers", dtype=dtype) for dtype in dtypes]
    if "openvino" in peers:
        more = {} if python is None else {"python": str(expanded(python))}
        sides.append(Side(library="openvino", **more))
    return sides


def _table(record: Mapping[str, Any]) -> list[str]:
    """Aligned text of what was found."""
    if record["stage"] == PICTURE:
        lines = []
        for title in ("cold", "warm"):
            lines.append(f"{title + ', seconds':<20}{'min':>10}{'median':>10}{'max':>10}")
            for key, values in record[title].items():
                places = 0 if key.endswith("_mb") else 3
                cells = (f"{values[name]:>10.{places}f}" for name in ("min", "median", "max"))
                lines.append(f"{key:<20}{''.join(cells)}")
        return lines
    if record["stage"] == DRAWING:
        return _drawing_table(record)
    lines = [
        f"{record['stage']}, {record['size']} px: {record['gflop']:.0f} GFLOP of products, "
        f"{record['floor_seconds']:.2f} s at the {record['fp32_gflops']:.0f} GFLOP/s of an fp32 "
        "product",
        f"{'':<22}{'median s':>9}{'least':>9}{'ours is':>9}{'of floor':>9}{'peak MB':>9}"
        f"{'differs':>9}",
    ]
    for name, found in record["sides"].items():
        lines.append(
            f"{name:<22}{found['seconds']:>9.3f}{found['least_seconds']:>9.3f}"
            f"{1 / found['faster']:>8.2f}x{found['of_the_floor']:>9.2f}{found['peak_mb']:>9.0f}"
            f"{found['difference']:>9.0e}"
        )
    return lines


def _drawing_table(record: Mapping[str, Any]) -> list[str]:
    columns = ("import", "load", "first", "whole", "next")
    lines = [
        f"drawing, {record['size']} px, {record['steps']} steps; seconds, medians; whole: import, "
        "load and the first picture",
        f"{'':<22}{''.join(f'{name:>9}' for name in columns)}{'ours is':>9}{'and next':>9}"
        f"{'peak MB':>9}{'differs':>9}",
    ]
    for name, found in record["sides"].items():
        cells = "".join(f"{found[column]:>9.2f}" for column in columns)
        lines.append(
            f"{name:<22}{cells}{1 / found['faster_whole']:>8.2f}x{1 / found['faster_next']:>8.2f}x"
            f"{found['peak_mb']:>9.0f}{found['difference']:>9.0e}"
        )
    return lines
