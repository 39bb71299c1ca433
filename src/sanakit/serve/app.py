"""The application: native routes over a `JobService`, and where the other shapes hang on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import FastAPI, Header, Path, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles

from sanakit.errors import DataError
from sanakit.pipeline.png import read_settings
from sanakit.serve import a1111, openai, reference
from sanakit.serve.access import PAGE, Guard
from sanakit.serve.answers import EventStream, owner_of, server_sent
from sanakit.serve.job import NotTaken
from sanakit.serve.jobs import ImageFormat, JobService
from sanakit.serve.limits import BodyLimit
from sanakit.serve.refusals import answer_errors, refusal_of
from sanakit.serve.requests import JOB_ID, DrawRequest, JobView
from sanakit.serve.settings import ServeSettings

Id = Annotated[str, Path(pattern=JOB_ID)]
STYLE = "/docs/style.css"


def create_app(service: JobService, settings: ServeSettings) -> FastAPI:
    """Give the application of a service; it is started and stopped by whoever runs it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = FastAPI(title="sanakit", lifespan=lifespan, docs_url=None, redoc_url=None)
    answer_errors(app)
    app.add_middleware(BodyLimit, limits=settings.limits)
    app.add_middleware(Guard, access=settings.access)
    app.include_router(openai.router(service, settings))
    app.include_router(a1111.router(service, settings))
    _native(app, service)
    _watched(app, service, settings)
    _documented(app)
    if settings.ui:
        app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


def _native(app: FastAPI, service: JobService) -> None:
    @app.post("/jobs", status_code=202)
    async def submit(
        wanted: DrawRequest,
        request: Request,
        idempotency_key: Annotated[str | None, Header(max_length=200)] = None,
    ) -> JobView:
        """Queue a drawing; the same Idempotency-Key gives the same job."""
        owner = owner_of(request)
        job = await service.submit(wanted, owner=owner, idempotency_key=idempotency_key)
        return service.view(job)

    @app.get("/jobs")
    async def jobs(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        before: Annotated[str | None, Query(pattern=JOB_ID)] = None,
    ) -> list[JobView]:
        """List jobs, the newest first, those before another one."""
        found = await service.recent(limit, before, owner_of(request))
        return [service.view(job) for job in found]

    @app.get("/jobs/{job}")
    async def job(job: Id, request: Request) -> JobView:
        """How far a job is."""
        return service.view(await service.get(job, owner_of(request)))

    @app.get("/jobs/{job}/events", response_class=StreamingResponse)
    async def events(
        job: Id, request: Request, last_event_id: Annotated[int, Header(ge=0)] = 0
    ) -> EventStream:
        """Server-sent events of a job, those after Last-Event-ID."""
        owner = owner_of(request)
        await service.get(job, owner)
        return EventStream(server_sent(service.events(job, last_event_id, owner)))

    @app.post("/jobs/{job}/cancel")
    async def cancel(job: Id, request: Request) -> JobView:
        """End a job: at once where it waits, after its step where it is drawn."""
        return service.view(await service.cancel(job, owner_of(request)))

    @app.delete("/jobs/{job}", status_code=204)
    async def remove(job: Id, request: Request) -> None:
        """Cancel and forget a job with its pictures."""
        await service.remove(job, owner_of(request))

    @app.get("/jobs/{job}/images/{index}", response_class=Response)
    async def image(
        job: Id,
        index: Annotated[int, Path(ge=0, le=1000)],
        request: Request,
        format: ImageFormat = "png",
        quality: Annotated[int, Query(ge=0, le=100)] = 100,
    ) -> Response:
        """A finished picture; as PNG it has its settings inside."""
        found = await service.get(job, owner_of(request))
        data = await service.image_bytes(found, index, format, quality)
        headers = {"Cache-Control": "private"}
        return Response(data, media_type=f"image/{format}", headers=headers)

    @app.post("/settings")
    async def settings_of(request: Request) -> DrawRequest:
        """Read the settings inside a PNG, as a request that draws it again."""
        return await asyncio.to_thread(request_in, await request.body())


def request_in(png: bytes) -> DrawRequest:
    """Give the request that draws a PNG again, as far as its settings are a request's.

    Raises:
        DataError: it carries none that are.
    """
    found = read_settings(png)
    known = {name: found[name] for name in DrawRequest.model_fields if found.get(name) is not None}
    for part in ("edit", "control"):
        if isinstance(known.get(part), dict):
            known[part] = _by_digest(known[part])
    try:
        return DrawRequest(**known)
    except ValueError as error:
        said = refusal_of(error).detail
        raise DataError(f"the picture's settings are no request: {said}") from error


def _by_digest(part: dict[str, Any]) -> dict[str, Any]:
    """Files that the command drew from, as pictures that were handed in are named."""
    digests = {name: part.get(f"{name}_sha256") for name in ("image", "mask")}
    own = {name: value for name, value in part.items() if not name.endswith("_sha256")}
    return own | {name: f"sha256:{digest}" for name, digest in digests.items() if digest}


def _watched(app: FastAPI, service: JobService, settings: ServeSettings) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the server answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        """Whether a model is loaded and requests are taken."""
        state = service.broken or ("draining" if service.draining else "loading")
        if service.ready:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": state}, 503)

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/capabilities")
    async def capabilities() -> dict[str, Any]:
        """What the model and the server can do."""
        if not service.capabilities:
            raise NotTaken("the model is loading", hint="try again in a moment")
        return service.capabilities | {"limits": asdict(settings.limits)}


def _documented(app: FastAPI) -> None:
    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(reference.page(app.openapi(), STYLE))

    @app.get(STYLE, include_in_schema=False)
    async def style() -> Response:
        return Response(reference.STYLE, media_type="text/css")
