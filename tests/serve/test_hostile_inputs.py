"""A thousand requests that nobody means well: each is refused with a reason, none costs anything.

What is written is watched through Python's audit events, the memory of the process from outside.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import os
import pickle
import socket
import struct
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from PIL import Image

from sanakit.serve.limits import Limits
from sanakit.serve.settings import ServeSettings
from tiny_server import MODEL, Server, b64, listening, png

MIB = 1 << 20
BODY = 4 * MIB
GROWTH = 300 * MIB
"""Of the memory of server and client together, of which two decodes of 16 M pixels are most."""


@dataclass
class Hostile:
    """One request and what it is about; ``least`` is the lowest status that is right."""

    about: str
    path: str
    method: str = "POST"
    sent: dict[str, Any] = field(default_factory=dict)
    least: int = 400


def chunk(kind: bytes, content: bytes) -> bytes:
    crc = binascii.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def claiming(width: int, height: int, *, data: bytes = b"", more: bytes = b"") -> bytes:
    """A PNG whose header claims a size that its pixels need not have."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(data))
    return b"\x89PNG\r\n\x1a\n" + head + more + pixels + chunk(b"IEND", b"")


def pictures() -> Iterator[tuple[str, bytes]]:
    whole = png()
    yield "empty", b""
    for size in ((20_000, 20_000), (2**31 - 1, 2**31 - 1), (0, 0), (2**32 - 1, 1), (1 << 20, 64)):
        yield f"a header that claims {size}", claiming(*size)
    bomb = zlib.compress(bytes(64 * MIB), 9)
    yield (
        "a profile that unpacks to 64 MiB",
        claiming(2000, 9000, more=chunk(b"iCCP", b"x\0\0" + bomb)),
    )
    yield (
        "a text that unpacks to 64 MiB",
        claiming(9000, 2000, more=chunk(b"zTXt", b"parameters\0\0" + bomb)),
    )
    yield "pixels that unpack to 64 MiB of 64 x 64", claiming(64, 64, data=bytes(64 * MIB))[:-4]
    for end in range(8, len(whole) - 1, max(1, len(whole) // 24)):
        yield f"cut at {end}", whole[:end]
    for place in range(8, len(whole) - 12, max(1, len(whole) // 24)):
        yield (
            f"a bit turned at {place}",
            whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :],
        )
    yield "text", b"hello"
    yield "a pickle", pickle.dumps({"a": Canary()})
    yield "a zip", b"PK\x03\x04" + bytes(200)
    yield (
        "an SVG",
        b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    )
    yield "PostScript", b"%!PS-Adobe-3.0\n(/etc/passwd) (r) file"
    yield "HTML", b"<html><script>alert(1)</script>"
    yield "a GIF that claims 65535 x 65535", b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(6) + b"\x2c"
    yield (
        "a WebP that claims 16384 x 16384",
        (b"RIFF\x20\0\0\0WEBPVP8L\x0d\0\0\0\x2f\xff\xff\xff\xff" + bytes(8)),
    )
    yield "a JPEG without an end", b"\xff\xd8\xff\xe0" + bytes(64)
    yield "a TIFF that points at itself", b"II*\0\x08\0\0\0\0\0\x08\0\0\0"
    frames = [Image.new("RGB", (8, 8), (i, 0, 0)) for i in range(3)]
    out = io.BytesIO()
    frames[0].save(out, "gif", save_all=True, append_images=frames[1:])
    yield "an animation", out.getvalue()


class Canary:
    """What a pickle of is never unpacked."""

    def __reduce__(self) -> Any:
        return os.putenv, ("SANAKIT_CANARY", "sung")


DRAW = {
    "/jobs": ("prompt", "num_steps", "guidance_scale", "width", "count"),
    "/v1/images/generations": ("prompt", "steps", "guidance", "n", "n"),
    "/sdapi/v1/txt2img": ("prompt", "steps", "cfg_scale", "width", "batch_size"),
}
NUMBERS: tuple[Any, ...] = (
    *(-1, 0, 10**6, 10**30, -(10**30), 1.5, "1", "x", [], {}, [1], {"a": 1}, True, False),
    *("../../etc/passwd", "1; DROP TABLE jobs", "${7*7}", "\u0661", 2**63, 1e308),
)
NAMES = (
    *("../../etc/passwd", "..\\..\\windows", "/etc/passwd", "%2e%2e%2f", "a/b", "a\0b", "C:\\x"),
    *("\\\\host\\share", ".", "..", "", " ", "x" * 5000, "\u202e", "a\nb", "-rf", "*", "~root"),
    *("<script>alert(1)</script>", "'; DROP TABLE jobs; --", "http://127.0.0.1/", "file:///x"),
    *("con", "nul.png", "a" * 64 + "!", "\ud800", "stripes/../stripes"),
)
TEXTS = (
    *("x" * 9000, "\ud800", "a\udfff", "\ud83d" * 10, "\U0001f600" * 8001, "\0" * 8001),
    *(None, 5, [], {}, ["x"], True),
)
BODIES = (
    *(b"", b"{", b"[]", b"null", b"1", b'"x"', b"\xff\xfe", b"{}{}", b'{"prompt": NaN}'),
    *(b'{"prompt": "x", "seed": NaN}', b'{"prompt": "x", "seed": Infinity}', b"\0" * 100),
    *(b"[" * 100_000, b'{"a":' * 50_000, b'{"prompt": ' + b"9" * 5000 + b"}", b"{'prompt': 'x'}"),
    *(b'{"prompt": "x", "seed": 1e400}', b'{"prompt": "\\ud800"}', b"PK\x03\x04", b"--x\r\n"),
    *(pickle.dumps({"prompt": "x"}), b'{"prompt": "x", "__class__": "os"}', b"prompt=x"),
    *(zlib.compress(b'{"prompt": "x"}'), b'\xef\xbb\xbf{"prompt": 1}', b"{" + b" " * MIB),
)


def requests() -> Iterator[Hostile]:
    for path, (prompt, *numbers) in DRAW.items():
        for name in numbers:
            for value in NUMBERS:
                usual = (type(value) is int and 1 <= value <= 3) or value in (0, 1.5)
                low = 200 if usual or (isinstance(value, float | bool) and "g" in name) else 400
                body = {"prompt": "x", name: value}
                yield Hostile(f"{name}={value!r:.20}", path, sent={"json": body}, least=low)
        for text in TEXTS:
            body = json.dumps({prompt: text}).encode()
            yield Hostile(f"{prompt}={text!r:.20}", path, sent=typed(body))
            if text is not None:
                body = json.dumps({"prompt": "x", "negative_prompt": text}).encode()
                yield Hostile(f"negative_prompt={text!r:.20}", path, sent=typed(body))
        for raw in BODIES:
            yield Hostile(f"the body {raw[:20]!r}", path, sent=typed(raw))
        for name in ("__proto__", "constructor", "../x", "", "a" * 3000, "\ud800", "model_config"):
            raw = json.dumps({"prompt": "x", name: 1}).encode()
            yield Hostile(f"the key {name[:20]!r}", path, sent=typed(raw))
        for name in NAMES:
            for key in {"/jobs": ("solver", "lora")}.get(path, ("model", "sampler_name")):
                value: Any = [name] if key == "lora" else name
                if path.startswith("/sdapi") and key == "model":
                    key, value = "override_settings", {"sd_model_checkpoint": name}
                if name == "" and key != "lora":
                    continue  # none is meant
                raw = json.dumps({"prompt": "x", key: value}).encode()
                yield Hostile(f"{key}={name[:20]!r}", path, sent=typed(raw))
        whole, pieces = typed(b"[" + b"1," * (5 * MIB // 2)), (bytes(MIB) for _ in range(5))
        yield Hostile("a body of 5 MiB", path, sent=whole, least=413)
        yield Hostile("5 MiB in pieces", path, sent={"content": pieces}, least=413)
    for about, data in pictures():
        text = b64(data)
        edit = {"prompt": "x", "edit": {"image": text}}
        yield Hostile(f"edit: {about}", "/jobs", sent={"json": edit})
        masked = {"prompt": "x", "edit": {"image": b64(png()), "mask": text}}
        yield Hostile(f"mask: {about}", "/jobs", sent={"json": masked})
        anew = {"prompt": "x", "init_images": [text]}
        yield Hostile(f"img2img: {about}", "/sdapi/v1/img2img", sent={"json": anew})
        form = {"files": {"image": ("a.png", data)}, "data": {"prompt": "x"}}
        yield Hostile(f"form: {about}", "/v1/images/edits", sent=form)
        both = {
            "files": {"image": ("a.png", png()), "mask": ("m.png", data)},
            "data": {"prompt": "x"},
        }
        yield Hostile(f"form's mask: {about}", "/v1/images/edits", sent=both)
        yield Hostile(f"settings: {about}", "/settings", sent={"content": data})
        if not text or not binascii.crc32(data):
            continue
        info = {"image": text}
        yield Hostile(f"png-info: {about}", "/sdapi/v1/png-info", sent={"json": info}, least=200)
    for text in (f"sha256:{'../' * 9}etc/passwd", f"sha256:{'0' * 64}", "sha256:"):
        for edit in ({"image": text}, {"image": b64(png()), "mask": text}):
            body = {"prompt": "x", "edit": edit}
            yield Hostile(f"edit of {text:.20}", "/jobs", sent={"json": body})
    for place in (
        "http://127.0.0.1:1/x.png",
        "file:///etc/passwd",
        "ftp://x/y",
        "data:text/html,x",
    ):
        edit = {"prompt": "x", "edit": {"image": place}}
        yield Hostile(f"edit of {place}", "/jobs", sent={"json": edit})
        anew = {"prompt": "x", "init_images": [place]}
        yield Hostile(f"img2img of {place}", "/sdapi/v1/img2img", sent={"json": anew})
    for name in NAMES:
        quoted = base64.urlsafe_b64encode(name.encode("utf-8", "replace")).decode()
        for form in (name.encode("utf-8", "replace"), quoted.encode()):
            path = "".join(f"%{byte:02x}" for byte in form)[:6000]
            for kind in (
                "/jobs/{}/images/0",
                "/jobs/{}/cancel",
                "/v1/models/{}",
                "/jobs/{}/events",
            ):
                method = "POST" if "cancel" in kind else "GET"
                yield Hostile(f"{kind} {name[:20]!r}", kind.format(path), method)
        files = {"image": (name.replace("\ud800", "?"), b"no picture")}
        form_of = {"files": files, "data": {"prompt": "x"}}
        yield Hostile(f"a file named {name[:20]!r}", "/v1/images/edits", sent=form_of)
    for value in (b"x" * 5000, b"../../x", b"\xff", b"-1", b"1e9", b"9" * 30, b""):
        sent: dict[str, Any] = {"headers": {"Last-Event-ID": value}}
        yield Hostile("Last-Event-ID", f"/jobs/{'0' * 32}/events", "GET", sent)
        long = {"Idempotency-Key": b"k" * 201 + value[:100]}
        yield Hostile("Idempotency-Key", "/jobs", sent={"json": {"prompt": "x"}, "headers": long})
        kind = {"Content-Type": b"multipart/form-data; boundary=" + value[:300]}
        yield Hostile("a boundary", "/v1/images/edits", sent={"content": b"x", "headers": kind})
    many = {"files": [("image", ("a", b"x"))] * 40, "data": {"prompt": "x"}}
    yield Hostile("forty pictures", "/v1/images/edits", sent=many)
    fields = {"data": {f"k{i}": "x" for i in range(500)}, "files": {"image": ("a", b"x")}}
    yield Hostile("five hundred fields", "/v1/images/edits", sent=fields)
    for query in ("limit=0", "limit=1000000", "limit=x", "before=../x", "before=" + "0" * 33):
        yield Hostile(query, f"/jobs?{query}", "GET")


def typed(body: bytes) -> dict[str, Any]:
    return {"content": body, "headers": {"Content-Type": "application/json"}}


_watching: list[str] | None = None


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _watching is None:
        return
    if event == "open" and isinstance(args[0], str | bytes):
        flags = args[2] or 0
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            _watching.append(os.fsdecode(args[0]))
    elif event in ("os.rename", "os.mkdir", "os.link", "os.symlink", "os.remove", "os.rmdir"):
        _watching.append(os.fsdecode(args[0]))
    elif event in ("pickle.find_class", "os.system", "os.putenv", "subprocess.Popen"):
        _watching.append(f"{event} {args!r}")
    elif event == "socket.connect":
        _watching.append(f"connect {args[1]!r}")


@contextmanager
def watched() -> Iterator[list[str]]:
    """Note what is written, run, unpickled and connected to."""
    global _watching
    sys.addaudithook(_hook)
    noted = _watching = []
    try:
        yield noted
    finally:
        _watching = None


@contextmanager
def largest_memory() -> Iterator[list[int]]:
    """Note the most memory that this process takes meanwhile, ten times a second."""
    process, seen, over = psutil.Process(), [psutil.Process().memory_info().rss], threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            seen.append(process.memory_info().rss)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = ServeSettings(model=MODEL, limits=Limits(body_bytes=BODY, body_seconds=1.0))
    with listening(tmp_path_factory.mktemp("hostile"), None, settings) as one:
        yield one


def test_a_thousand_hostile_requests_are_refused_with_a_reason(server: Server) -> None:
    asked = list(requests())
    assert len(asked) >= 1000
    wrong = []
    port = server.url.rpartition(":")[2]
    with largest_memory() as memory, watched() as noted:
        for one in asked:
            answer = server.http.request(one.method, server.url + one.path, **one.sent)
            said = reason(answer)
            if not one.least <= answer.status_code < 500 or (
                answer.status_code >= 400 and not said
            ):
                wrong.append((one.about, one.path[:60], answer.status_code, answer.text[:200]))
    assert not wrong, f"{len(wrong)} of {len(asked)}: {wrong[:8]}"
    assert max(memory) - memory[0] < GROWTH
    own = str(server.folder)
    outside = {one for one in noted if not one.startswith(own) and port not in one}
    assert not outside
    assert "SANAKIT_CANARY" not in os.environ
    assert server.http.get(f"{server.url}/healthz").status_code == 200


@pytest.mark.parametrize(
    "rest", ['"lora": [' + "0," * 10**5 + "0]", ",".join(f'"k{i}": 0' for i in range(10**5))]
)
def test_a_body_of_many_values_is_refused_before_each_becomes_an_error(
    server: Server, rest: str
) -> None:
    body = '{"prompt": "x", ' + rest + "}"
    answer = server.http.post(f"{server.url}/jobs", **typed(body.encode()))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_texts_may_be_of_the_signs_that_begin_values(server: Server) -> None:
    body = {"prompt": "," * 8000, "negative_prompt": "[{" * 4000}
    assert server.http.post(f"{server.url}/jobs", json=body).status_code == 202


def reason(answer: httpx.Response) -> str:
    try:
        body = answer.json()
    except ValueError:
        return ""
    if not isinstance(body, dict):
        return ""
    error = body.get("error")
    return str(error.get("message", "") if isinstance(error, dict) else body.get("detail", ""))


PROMPTS = (
    *("<img src=x onerror=alert(1)>", "'; DROP TABLE jobs; --", "{{7*7}} ${7*7}", "\x1b[31mred"),
    *(
        "../../etc/passwd",
        "\u202egnp.exe",
        "a\0b",
        "\n" * 100,
        "",
        " ",
        "\U0001f469\u200d\U0001f680",
    ),
    *("%s%s%n", "\u0000" * 10, "A" * 8000, "<lora", "(((((", "\ufeff", "Steps: 5, Seed: 1"),
)


@pytest.mark.parametrize("prompt", PROMPTS, ids=ascii)
def test_an_odd_prompt_is_text_and_nothing_else(server: Server, prompt: str) -> None:
    for path in ("/v1/images/generations", "/sdapi/v1/txt2img"):
        answer = server.http.post(server.url + path, json={"prompt": prompt, "steps": 1})
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "application/json"
    job = server.http.get(f"{server.url}/jobs?limit=1").json()[0]
    assert job["request"]["prompt"] == prompt


def test_a_body_that_never_comes_is_not_waited_for(server: Server) -> None:
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as line:
        head = "POST /jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        line.sendall(f"{head}Content-Length: 1000\r\n\r\n{{".encode())
        began = time.monotonic()
        line.settimeout(20)
        assert line.recv(100).startswith(b"HTTP/1.1 408")
        assert time.monotonic() - began < 15


def test_bodies_together_are_bounded(tmp_path: Path) -> None:
    limits = Limits(body_bytes=MIB, all_bodies=2 * MIB, body_seconds=20)
    settings = ServeSettings(model=MODEL, limits=limits)
    with listening(tmp_path, None, settings) as server:
        port = int(server.url.rpartition(":")[2])
        lines = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
        head = "POST /jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        for line in lines[:2]:
            line.sendall(f"{head}Content-Length: {MIB}\r\n\r\n".encode() + b" " * (MIB - 9))
        time.sleep(0.5)
        line = lines[2]
        line.sendall(f"{head}Content-Length: {MIB}\r\n\r\n".encode() + b" " * (MIB - 9))
        line.settimeout(20)
        assert line.recv(1000).startswith(b"HTTP/1.1 503")
        for one in lines:
            one.close()
        until_free = time.monotonic() + 10
        while server.http.post(f"{server.url}/jobs", json={"prompt": "x"}).status_code != 202:
            assert time.monotonic() < until_free
            time.sleep(0.1)
