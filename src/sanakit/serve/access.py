"""Who may ask: keys, hosts, origins, rates; and what browsers are told about the answers.

Every route asks for a key where there are keys, except `OPEN`, which tell nothing. Browsers send
keys of their own accord once they were typed, so a foreign page's requests are refused by origin.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import logging
import math
import os
import re
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sanakit.errors import ConfigError, SanakitError
from sanakit.files import read_json, write_json
from sanakit.serve.refusals import Refused, send_refusal
from sanakit.serve.requests import NAME
from sanakit.untrusted import dataclass_from

logger = logging.getLogger(__name__)
START = "sanakit-"
PAGE = Path(__file__).with_name("page")
"""Files of the page. It asks for a key itself, in words that say what it is."""
OPEN = frozenset({"/healthz", "/readyz", "/", *(f"/{file.name}" for file in PAGE.iterdir())})
DRAWING = (
    *("/jobs", "/v1/images/generations", "/v1/images/edits"),
    *("/sdapi/v1/txt2img", "/sdapi/v1/img2img"),
)
"""What counts against a key's rate."""
SECRETS = re.compile(
    rf"{START}[A-Za-z0-9_-]{{8,}}|(?i:\b(bearer|basic)\s+)[A-Za-z0-9+/=_.~-]{{8,}}"
)
HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9_.-]{1,253})(?::\d{1,5})?")
LOCAL = ("localhost", "127.0.0.1", "::1")
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """A key as it is kept: never itself, but its digest; it is random, so one digest suffices.

    ``rate`` is of drawings a minute, ``concurrency`` of those that wait or are drawn; 0 is any.
    """

    name: str
    sha256: str
    rate: int = 0
    concurrency: int = 0

    def __post_init__(self) -> None:
        if not re.fullmatch(NAME, self.name):
            raise ConfigError(f"key name {self.name!r} is not of letters, digits, and . _ -")
        if not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ConfigError(f"key {self.name}: its sha256 is none")
        if min(self.rate, self.concurrency) < 0:
            raise ConfigError(f"key {self.name}: rate and concurrency are 0 or more")


class Keys:
    """The keys in a file, read again whenever it changes."""

    def __init__(self, path: Path) -> None:
        """Read them.

        Raises:
            ConfigError: the file is missing, damaged or holds no key.
        """
        self.path = path
        self._keys: tuple[Key, ...] = ()
        self._stamp: tuple[int, int] | None = None
        self._spent: dict[str, tuple[float, float]] = {}
        self._read()

    def _read(self) -> None:
        found = os.stat(self.path)
        stamp = (found.st_mtime_ns, found.st_size)
        if stamp != self._stamp:
            keys = read_keys(self.path)
            if not keys:
                raise ConfigError(f"{self.path} holds no key", hint="sanakit keys add NAME FILE")
            self._keys, self._stamp = keys, stamp

    def holder(self, secret: str) -> Key | None:
        """Give the key that a secret is, in a time that tells nothing of how near it came."""
        try:
            self._read()
        except (OSError, SanakitError) as error:
            logger.error("the keys stay as they were: %s", error)
        digest = digest_of(secret)
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found

    def concurrency(self, owner: str) -> int:
        """How many drawings of an owner may be under way; 0 is any number."""
        return next((key.concurrency for key in self._keys if key.name == owner), 0)

    def wait_for(self, key: Key, now: float) -> float:
        """Count a drawing against a key's rate; seconds to wait where it is spent, else 0."""
        if not key.rate:
            return 0.0
        left, since = self._spent.get(key.name, (float(key.rate), now))
        left = min(float(key.rate), left + (now - since) * key.rate / 60)
        granted = left >= 1
        self._spent[key.name] = (left - 1 if granted else left, now)
        return 0.0 if granted else (1 - left) * 60 / key.rate


def digest_of(secret: str) -> str:
    """Give what is kept of a key."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def read_keys(path: Path) -> tuple[Key, ...]:
    """Read a file of keys.

    Raises:
        ConfigError: it is no such file.
    """
    content = read_json(path)
    listed = content.get("keys")
    if not isinstance(listed, list):
        raise ConfigError(f"{path} is no file of keys", hint="sanakit keys add NAME FILE makes one")
    keys = tuple(dataclass_from(Key, one, source=str(path)) for one in listed)
    if len({key.name for key in keys}) < len(keys):
        raise ConfigError(f"{path}: two keys have one name")
    return keys


def write_keys(path: Path, keys: tuple[Key, ...]) -> None:
    """Write a file of keys, for its owner's eyes."""
    write_json(path, {"keys": [asdict(key) for key in keys]})
    path.chmod(0o600)


def add_key(path: Path, name: str, *, rate: int = 0, concurrency: int = 0) -> str:
    """Make a key and write down its digest; the key itself is given once, and kept nowhere.

    Raises:
        ConfigError: there is one of that name.
    """
    keys = read_keys(path) if path.exists() else ()
    if name in [key.name for key in keys]:
        raise ConfigError(f"{path} has a key named {name}", hint="remove it first")
    secret = START + secrets.token_urlsafe(32)
    made = Key(name=name, sha256=digest_of(secret), rate=rate, concurrency=concurrency)
    write_keys(path, (*keys, made))
    return secret


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address that is listened on."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@dataclass(kw_only=True, slots=True)
class Access:
    """Who may ask a server that listens on ``host``.

    ``hosts`` are names that it also goes by, ``origins`` pages elsewhere, as behind a proxy.

    Raises:
        ConfigError: others can reach it, and it has no keys.
    """

    host: str = "127.0.0.1"
    keys: Keys | None = None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    _names: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        if self.keys is None and not is_loopback(self.host):
            raise ConfigError(
                f"--host {self.host} lets others in, and nothing asks them who they are",
                hint="sanakit keys add NAME FILE, then --keys FILE",
            )
        own = () if is_loopback(self.host) else (self.host, socket.gethostname())
        self._names = frozenset(name.lower() for name in (*LOCAL, *own, *self.hosts))

    def check(self, path: str, headers: Headers) -> Key | None:
        """Judge a request; give the key that it came with.

        Raises:
            Refused: 400, 401 or 403.
        """
        if path in OPEN:
            return None
        host = self._check_host(headers.getlist("host"))
        self._check_origin(headers.getlist("origin"), host)
        if self.keys is None:
            return None
        secret = secret_in(headers.getlist("authorization"))
        key = None if secret is None else self.keys.holder(secret)
        if key is None:
            said = "no API key was sent" if secret is None else "the API key is not known here"
            raise Refused(
                401,
                f"{said}; send it as Authorization: Bearer KEY, or as the password of Basic",
                code="invalid_api_key",
                headers={"WWW-Authenticate": 'Basic realm="sanakit", charset="UTF-8"'},
            )
        return key

    def _check_host(self, given: list[str]) -> str:
        match = HOST.fullmatch(given[0]) if len(given) == 1 else None
        if match is None:
            raise Refused(400, "the request names no host, or several", code="bad_host")
        name = match[1].strip("[]").rstrip(".").lower()
        # A foreign page can make a name of its own mean this machine, but not an address.
        if name not in self._names and (is_loopback(self.host) or not _is_address(name)):
            raise Refused(
                403,
                f"this server is not known as {name[:80]}; --allow-host {name[:80]} makes it so",
                code="host_not_allowed",
            )
        return given[0].lower()

    def _check_origin(self, given: list[str], host: str) -> None:
        for origin in given:
            if origin in self.origins:
                continue
            scheme, _, place = origin.lower().partition("://")
            if scheme not in ("http", "https") or place != host:
                raise Refused(
                    403,
                    f"pages of {origin[:80]} may not ask this server; --allow-origin lets them",
                    code="origin_not_allowed",
                )


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def secret_in(given: list[str]) -> str | None:
    """Give the key in an Authorization header: a bearer's, or the password of Basic."""
    scheme, _, value = (given[0] if len(given) == 1 else "").partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer" and value:
        return value
    if scheme.lower() == "basic":
        try:
            told = base64.b64decode(value, validate=True).decode("utf-8")
        except (binascii.Error, ValueError):
            return None
        return told.partition(":")[2] or None
    return None


class Guard:
    """Stands before an application: judges each request, and adds headers to each answer."""

    def __init__(
        self, app: ASGIApp, access: Access, now: Callable[[], float] = time.monotonic
    ) -> None:
        """Stand before ``app``."""
        self.app, self.access, self.now = app, access, now

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # no route speaks anything else
            await send({"type": "websocket.close", "code": 1008})
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            key = self.access.check(scope["path"], Headers(scope=scope))
            self._check_rate(scope, key)
        except Refused as refused:
            await send_refusal(scope, with_headers, refused)
            return
        scope.setdefault("state", {})["owner"] = "" if key is None else key.name
        await self.app(scope, receive, with_headers)

    def _check_rate(self, scope: Scope, key: Key | None) -> None:
        if key is None or scope["method"] != "POST" or scope["path"] not in DRAWING:
            return
        assert self.access.keys is not None
        if wait := self.access.keys.wait_for(key, self.now()):
            raise Refused(
                429,
                f"{key.name} may ask for {key.rate} drawings a minute",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(math.ceil(wait))},
            )


class Scrubbed(logging.Formatter):
    """What a formatter writes, without keys."""

    def __init__(self, inner: logging.Formatter | None) -> None:
        """Take the formatter that was there."""
        super().__init__()
        self.inner = inner or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        """Write a record; exceptions are part of it."""
        return scrubbed(self.inner.format(record))


def scrubbed(text: str) -> str:
    """Give a text without keys."""
    return SECRETS.sub("[key]", text)


def scrub_logs() -> None:
    """Let no handler that there is write a key."""
    for name in ("", "sanakit", "uvicorn", "uvicorn.error", "uvicorn.access"):
        for handler in logging.getLogger(name).handlers:
            if not isinstance(handler.formatter, Scrubbed):
                handler.setFormatter(Scrubbed(handler.formatter))
