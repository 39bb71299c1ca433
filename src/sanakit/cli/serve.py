"""`sanakit serve`: draw for many, over HTTP."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from pathlib import Path
from typing import Annotated, Any

import typer

from sanakit.cli.drawing import EMBEDDED
from sanakit.cli.loras import strength_of
from sanakit.cli.machine import AUTO, DTYPES, Device, Dtype, Machine, Quantize
from sanakit.cli.options import ControlNet, Decoder, Model, Offline
from sanakit.cli.terminal import say
from sanakit.errors import ConfigError, SanakitError
from sanakit.files import expanded
from sanakit.untrusted import whole_number

EXTRA = 'pip install "sanakit[serve]"'
EXTRA_RAY = 'pip install "sanakit[serve-ray]"'


def serve(
    model: Model = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    no_ui: Annotated[bool, typer.Option("--no-ui", help="Routes only, no page.")] = False,
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait.")] = 64,
    at_once: Annotated[
        int, typer.Option(min=1, max=32, help="Requests that advance together, a step each.")
    ] = 4,
    keys: Annotated[
        Path | None, typer.Option(help="File of keys to ask for; sanakit keys add makes one.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name this server goes by. May be repeated.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="https://NAME of a page elsewhere that may ask. May be repeated."),
    ] = None,
    max_pixels: Annotated[int, typer.Option(min=1, help="Pixels of a picture.")] = 2048 * 2048,
    max_steps: Annotated[int, typer.Option(min=1, max=1000, help="Steps of a request.")] = 150,
    max_count: Annotated[int, typer.Option(min=1, help="Pictures of a request.")] = 10,
    blocked_words: Annotated[
        Path | None, typer.Option(help="File of words that no prompt may hold, one a line.")
    ] = None,
    check_output: Annotated[
        bool, typer.Option("--check-output", help="Hold back pictures unfit for work.")
    ] = False,
    deadline: Annotated[
        float | None, typer.Option(min=0.001, help="Seconds for a request that names none.")
    ] = None,
    stuck_after: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="Seconds without progress after which the drawing process is started again. "
            "Default: 600, and more where large pictures take long.",
        ),
    ] = None,
    history: Annotated[
        Path | None, typer.Option(help="Folder of finished pictures and the queue.")
    ] = None,
    history_size: Annotated[
        float, typer.Option(min=0, help="GB of pictures to keep; the oldest go first.")
    ] = 10.0,
    drain: Annotated[
        float, typer.Option(min=0, help="Seconds that SIGTERM gives to what is being drawn.")
    ] = 60.0,
    ray: Annotated[
        bool, typer.Option("--ray", help="Draw on the Ray cluster of RAY_ADDRESS, or one here.")
    ] = False,
    replicas: Annotated[
        str | None,
        typer.Option(help="With --ray, how many models: 2, or 1-4 as the queue asks. Default: 1"),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            help="LoRA that requests may name: NAME=FILE or NAME=FILE:0.7; FILE alone is named by "
            "its file. May be repeated."
        ),
    ] = None,
    controlnet: ControlNet = None,
    decoder: Decoder = None,
    offline: Offline = False,
    device: Device = AUTO,
    dtype: Dtype = None,
    quantize: Quantize = None,
) -> None:
    """Draw for many, over HTTP: jobs, events, a page, and the shapes that clients know."""
    machine = Machine(device=device, dtype=dtype, quantize=quantize)
    least, most = _range_of(replicas, ray=ray)
    try:
        import uvicorn

        from sanakit.serve.access import Access, Keys, scrub_logs
        from sanakit.serve.app import create_app
    except ImportError as error:
        raise ConfigError(f"serving needs {error.name}", hint=EXTRA) from error
    from platformdirs import user_data_path

    from sanakit.serve.history import History
    from sanakit.serve.jobs import JobService
    from sanakit.serve.limits import Limits
    from sanakit.serve.moderation import BlockedWords, OutputChecker
    from sanakit.serve.settings import ServeSettings
    from sanakit.serve.worker_process import Worker, WorkerProcess

    name = model or EMBEDDED
    asked = None if keys is None else Keys(expanded(keys))
    settings = ServeSettings(
        model=name,
        ui=not no_ui,
        access=Access(
            host=host, keys=asked, hosts=tuple(allow_host or ()), origins=tuple(allow_origin or ())
        ),
        limits=Limits(pixels=max_pixels, steps=max_steps, count=max_count),
        blocked=BlockedWords.of(()) if blocked_words is None else BlockedWords.read(blocked_words),
    )
    fit = OutputChecker() if check_output else None
    kept = History(
        user_data_path("sanakit") / "serve" if history is None else expanded(history),
        most_bytes=int(history_size * 1e9),
    )
    wanted: dict[str, Any] = {
        "model": name,
        "device": None if machine.device == AUTO else machine.device,
        "dtype": None if dtype is None else DTYPES[dtype],
        "quantize": quantize,
        "decoder": decoder,
        "controlnet": controlnet,
        "offline": offline,
        "loras": _named(lora or []),
        "inputs": str(kept.inputs),
        "at_once": at_once,
        "max_pixels": max_pixels,
        "stuck_after": stuck_after,
    }

    def worker() -> Worker:
        if not ray:
            return WorkerProcess(wanted)
        try:
            from sanakit.serve.ray import RayWorker
        except ImportError as error:
            raise ConfigError(f"--ray needs {error.name}", hint=EXTRA_RAY) from error
        return RayWorker(wanted, least=least, most=most, at_once=at_once)

    async def run() -> None:
        service = JobService(
            worker(),
            kept,
            queue=queue,
            at_once=at_once * most,
            deadline=deadline,
            check=settings.check,
            most_of=(lambda owner: 0) if asked is None else asked.concurrency,
            fit=fit,
        )
        server = uvicorn.Server(
            uvicorn.Config(
                create_app(service, settings),
                log_level="warning",
                timeout_graceful_shutdown=5,
            )
        )
        scrub_logs()
        await _run_until_told(server, service, drain, listening)

    with _listening(host, port) as listening:
        place = f"[{host}]" if ":" in host else host
        say(f"http://{place}:{listening.getsockname()[1]}", err=True)
        asyncio.run(run())


def _listening(host: str, port: int) -> socket.socket:
    """Take an address before a model is loaded in vain."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(
            f"{host}:{port} cannot be listened on: {os.strerror(error.errno or 0)}",
            hint="--port 0 takes any port that is free",
        ) from error


def _range_of(replicas: str | None, *, ray: bool) -> tuple[int, int]:
    """The least and the most of ``2`` or ``1-4``."""
    if replicas is not None and not ray:
        raise ConfigError(f"--replicas {replicas} without --ray", hint="add --ray")
    ends = [whole_number(end) or 0 for end in (replicas or "1").split("-")]
    if not 1 <= len(ends) <= 2 or not 1 <= ends[0] <= ends[-1]:
        raise ConfigError(f"--replicas {replicas!r} is no number of them", hint="2, or 1-4")
    return ends[0], ends[-1]


def _named(specs: list[str]) -> dict[str, tuple[str, float]]:
    """The files of LoRA and their strengths, by the names that requests say."""
    from sanakit.serve.requests import NAME as NAME_PATTERN

    found: dict[str, tuple[str, float]] = {}
    for spec in specs:
        name, named, place = spec.rpartition("=")
        path, strength = strength_of(place)
        name = name if named else path.stem
        if not re.fullmatch(NAME_PATTERN, name):
            raise ConfigError(f"--lora {spec}: {name!r} is no name", hint="write --lora NAME=FILE")
        if name in found:
            raise ConfigError(f"--lora {spec}: {name!r} is there twice", hint="name one otherwise")
        found[name] = str(path), strength
    return found


async def _run_until_told(
    server: Any, service: Any, drain: float, listening: socket.socket
) -> None:
    """Run; SIGTERM and Ctrl-C first finish what is being drawn, a second one ends at once.

    Raises:
        SanakitError: the model does not load.
    """
    loop = asyncio.get_running_loop()
    ending: list[asyncio.Task[None]] = []

    async def end() -> None:
        await service.stop(patience=drain)
        server.should_exit = True

    def told() -> None:
        if ending:
            server.should_exit = server.force_exit = True
        else:
            ending.append(asyncio.create_task(end()))

    async def end_without_model() -> None:
        await service.unloadable.wait()
        told()

    server.handle_exit = lambda number, frame: loop.call_soon_threadsafe(told)
    watching = loop.create_task(end_without_model())
    await server.serve(sockets=[listening])
    watching.cancel()
    if service.broken:
        raise SanakitError(service.broken)
