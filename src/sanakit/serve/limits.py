"""What one request may ask for: sizes, counts, lengths, pictures, judged before work is done.

A body is counted while it comes in; a picture is decoded only after its header was judged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sanakit.errors import check_unicode
from sanakit.serve.history import DIGEST
from sanakit.serve.pictures import decoding, picture, picture_bytes
from sanakit.serve.refusals import Refused, send_refusal
from sanakit.serve.requests import DrawRequest

BEGINS = (b",", b"[", b"{")
HandedIn = Callable[[str], Path]


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The most that a request may ask for; ``body_bytes`` is of one body, ``all_bodies`` of all.

    ``body_values`` is of signs that may begin a value of JSON, those within texts included: each
    value may become an error of its own, which takes a thousand times its room.
    """

    body_bytes: int = 32 << 20
    body_values: int = 1 << 15
    all_bodies: int = 256 << 20
    body_seconds: float = 30.0
    pixels: int = 2048 * 2048
    longest_side: int = 8192
    steps: int = 150
    guidance: float = 100.0
    flow_shift: float = 100.0
    count: int = 10
    prompt_length: int = 8000
    loras: int = 8
    picture_pixels: int = 1 << 24
    deadline: float = 3600.0

    def check(self, request: DrawRequest, able: Mapping[str, Any]) -> None:
        """Judge the numbers and texts of a request; ``able`` is what the model can do.

        Raises:
            Refused: 400 with the name of the first that is too much.
        """
        for name in ("prompt", "negative_prompt"):
            text = getattr(request, name)
            if len(text) > self.prompt_length:
                raise _over(name, f"has {len(text)} characters", f"{self.prompt_length} are taken")
            check_unicode(text, name)
        for name, value, most in (
            ("num_steps", request.num_steps, self.steps),
            ("guidance_scale", request.guidance_scale, self.guidance),
            ("flow_shift", request.flow_shift, self.flow_shift),
            ("count", request.count, self.count),
            ("lora", len(request.lora), self.loras),
            ("deadline", request.deadline, self.deadline),
            ("width", request.width, self.longest_side),
            ("height", request.height, self.longest_side),
        ):
            if value is not None and value > most:
                raise _over(name, f"is {value:g}", f"{most:g} is the most here")
        usual = able.get("default_size", 1)
        if request.height is not None or request.width is not None:
            self._check_pixels(request.height or usual, request.width or usual)

    async def check_pictures(self, request: DrawRequest, handed_in: HandedIn) -> None:
        """Decode the pictures of a request once, away from the event loop, to judge them.

        ``handed_in`` says where one is that is named by its digest: it came with other sizes.

        Raises:
            Refused: 400, no picture, a damaged one, or one that is too large.
        """
        if request.edit is None and request.control is None:
            return
        await decoding(self._check_pictures, request, handed_in)

    def _check_pictures(self, request: DrawRequest, handed_in: HandedIn) -> None:
        sizes: dict[str, tuple[int, int]] = {}
        given = []
        if request.edit is not None:
            given += [("image", request.edit.image), ("mask", request.edit.mask)]
        if request.control is not None:
            given += [("control.image", request.control.image)]
        for name, text in given:
            if text is None:
                continue
            known = DIGEST.fullmatch(text) is not None
            data = handed_in(text).read_bytes() if known else picture_bytes(text, name)
            found = picture(data, name, self.picture_pixels)
            sizes[name] = found.height, found.width
            if name == "mask":
                continue
            left, top, right, bottom = (
                request.edit.expand if request.edit and name == "image" else (0, 0, 0, 0)
            )
            height = found.height + max(top, 0) + max(bottom, 0)
            width = found.width + max(left, 0) + max(right, 0)
            if request.height is None or request.width is None:
                self._check_pixels(height, width)
            elif height * width > self.picture_pixels:  # it is made before it is scaled
                said = f"makes the picture {width}x{height}, which is too large"
                raise _over("expand", said, f"{self.picture_pixels} pixels are held")
        if "mask" in sizes and "image" in sizes and sizes["mask"] != sizes["image"]:
            (height, width), (tall, wide) = sizes["image"], sizes["mask"]
            raise Refused(
                400,
                f"mask is {wide} x {tall}, and the image {width} x {height}",
                param="mask",
                code="bad_picture",
            )

    def _check_pixels(self, height: int, width: int) -> None:
        if height * width > self.pixels:
            raise _over("size", f"{width}x{height} is too large", f"{self.pixels} pixels are drawn")


def _over(name: str, what: str, most: str) -> Refused:
    return Refused(400, f"{name} {what}, and {most}", param=name, code="over_limit")


class BodyLimit:
    """Counts bodies while they come in, of one request and of all, and waits for none for long.

    One counts until its answer, or until its route has let go of all of it (`let_go`): requests
    that wait for their drawing with pictures long on the disk keep nobody out.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        """Stand before ``app``."""
        self.app, self.limits = app, limits
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limits, mine, values, whole = self.limits, 0, 0, False
        headers = dict(scope["headers"])
        json = b"json" in headers.get(b"content-type", b"").lower()
        claimed = headers.get(b"content-length", b"0")
        if not claimed.isdigit() or len(claimed) > 18 or int(claimed) > limits.body_bytes:
            await send_refusal(scope, send, _too_large(limits))
            return

        async def counted() -> Message:
            nonlocal mine, values, whole
            if whole:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), limits.body_seconds)
            except asyncio.TimeoutError:
                raise Refused(408, "the request's body did not come", code="slow_body") from None
            body = message.get("body", b"")
            mine, self.held = mine + len(body), self.held + len(body)
            values += sum(map(body.count, BEGINS)) if json else 0
            whole = message["type"] != "http.request" or not message.get("more_body", False)
            if mine > limits.body_bytes:
                raise _too_large(limits)
            if values > limits.body_values:
                said = f"the request's body has over {limits.body_values} values"
                raise Refused(413, said, code="body_too_large")
            if self.held > limits.all_bodies:
                raise Refused(
                    503,
                    "many large requests are being read; try again soon",
                    code="busy",
                    headers={"Retry-After": "2"},
                )
            return message

        def gone() -> None:
            nonlocal mine
            mine, self.held = 0, self.held - mine

        scope.setdefault("state", {})["body_gone"] = gone
        try:
            await self.app(scope, counted, send)
        finally:
            gone()


def let_go(request: Request) -> None:
    """Say that nothing of a request's body is held any more, here or in a frame that waits."""
    request.state.body_gone()


def _too_large(limits: Limits) -> Refused:
    most = f"{limits.body_bytes >> 20} MiB" if limits.body_bytes >> 20 else f"{limits.body_bytes} B"
    return Refused(413, f"the request's body is over {most}", code="body_too_large")
