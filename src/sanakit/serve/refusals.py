"""What is answered where a request is refused or fails: one error, in the shape its client reads.

`/v1` answers as OpenAI does, `/sdapi` as A1111 does, all else as `/v1`.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Scope, Send

from sanakit.errors import SanakitError, plain
from sanakit.serve.job import KeyConflict, NotTaken, QueueFull, UnknownJob

logger = logging.getLogger(__name__)
LONGEST = 500
KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
CODES = {404: "not_found", 405: "method_not_allowed", 500: "internal_error"}
BAD = (400, "invalid_value")
TOLD: Mapping[type[SanakitError], tuple[int, str]] = {
    QueueFull: (429, "queue_full"),
    NotTaken: (503, "unavailable"),
    KeyConflict: (409, "idempotency_conflict"),
    UnknownJob: (404, "not_found"),
}


class Refused(HTTPException):
    """A request that is not served: a status, a sentence, the parameter at fault, a word for it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Shorten the message to what is shown."""
        super().__init__(status, plain(message)[:LONGEST], dict(headers or {}))
        self.param, self.code = param, code or CODES.get(status)

    def named(self, names: Mapping[str, str]) -> Refused:
        """Give the same in the names that a client has for parameters."""
        name = names.get(self.param or "")
        if name is None:
            return self
        said = re.sub(rf"^{re.escape(self.param or '')}\b", name, self.detail)
        return Refused(self.status_code, said, param=name, code=self.code, headers=self.headers)

    def openai(self) -> dict[str, Any]:
        """Give the body that clients of OpenAI read, in answers and in streams."""
        server = "server_error" if self.status_code >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.detail,
                "type": KINDS.get(self.status_code, server),
                "param": self.param,
                "code": self.code,
            }
        }

    def a1111(self) -> dict[str, Any]:
        """Give the body that clients of A1111 read."""
        return {"error": self.code or "error", "detail": self.detail, "body": "", "errors": ""}

    def answer(self, path: str) -> JSONResponse:
        """Give the answer to a request at ``path``."""
        body = self.a1111() if path.startswith("/sdapi/") else self.openai()
        return JSONResponse(body, self.status_code, self.headers)


def refusal_of(error: Exception) -> Refused:
    """Tell an error as a refusal; what nobody foresaw gets a number to find it by in the log."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, HTTPException):
        return Refused(error.status_code, str(error.detail), headers=error.headers)
    if isinstance(error, RequestValidationError | ValidationError):
        return _of_validation(error)
    if isinstance(error, ClientDisconnect):
        return Refused(499, "the client is gone", code="cancelled")
    if isinstance(error, SanakitError):
        said = f"{error.message}; {error.hint}" if error.hint else error.message
        status, code = next((told for kind, told in TOLD.items() if isinstance(error, kind)), BAD)
        wait = {"Retry-After": str(error.retry_after)} if isinstance(error, QueueFull) else None
        return Refused(status, said, code=code, headers=wait)
    number = secrets.token_hex(4)
    logger.error("error %s in a request", number, exc_info=error)
    return Refused(500, f"the server failed; its log says why under {number}")


def _of_validation(error: RequestValidationError | ValidationError) -> Refused:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return Refused(400, "the body is no JSON", code="invalid_json")
    where = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    name = ".".join(where)[:80] or None
    if first["type"] == "extra_forbidden":
        return Refused(400, f"{name} is unknown here", param=name, code="unknown_parameter")
    if name is None and first["type"] in ("model_attributes_type", "model_type"):
        said = "the body is no JSON object; it is sent with Content-Type: application/json"
    elif name is None and first["type"] == "value_error":  # our own sentence, which names it
        said = str(first["ctx"]["error"])
    else:
        said = f"{name or 'the body'}: {first['msg'].removeprefix('Value error, ')}"
    return Refused(400, said, param=name, code="invalid_value")


def answer_errors(app: FastAPI) -> None:
    """Let every error of an application be answered in its client's shape."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        return refusal_of(error).answer(request.url.path)

    invalid = (RequestValidationError, ValidationError)
    for kind in (HTTPException, *invalid, ClientDisconnect, SanakitError, Exception):
        app.add_exception_handler(kind, answer)


async def send_refusal(scope: Scope, send: Send, refused: Refused) -> None:
    """Answer before the application was asked."""

    async def nothing() -> dict[str, str]:
        return {"type": "http.disconnect"}

    await refused.answer(scope["path"])(scope, nothing, send)
