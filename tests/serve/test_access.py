"""Who may ask: each guard stands between a stranger and the server."""

from __future__ import annotations

import asyncio
import json
import logging
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute

import command_line
from sanakit.errors import ConfigError
from sanakit.serve import access
from sanakit.serve.access import Access, Guard, Key, Keys, add_key, digest_of, read_keys, scrubbed
from sanakit.serve.settings import ServeSettings
from tiny_server import MODEL, ColorWorker, Server, b64, listening, until


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("keyed")
    file = folder / "keys.json"
    secrets = {
        "alice": add_key(file, "alice"),
        "bob": add_key(file, "bob", concurrency=1),
        "carol": add_key(file, "carol", rate=2),
    }
    keys = Keys(file)
    settings = ServeSettings(model=MODEL, access=Access(keys=keys, hosts=("pictures.example",)))
    worker = ColorWorker(seconds=0.01)
    with listening(folder, worker, settings, most_of=keys.concurrency) as server:
        yield server, secrets


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def test_every_route_but_health_and_the_page_asks_for_a_key(
    keyed: tuple[Server, dict[str, str]],
) -> None:
    server, _ = keyed
    routes = [one for one in server.app.routes if isinstance(one, APIRoute)]
    document = server.app.openapi()["paths"]
    paths = {one.path for one in routes} | set(document) | {"/openapi.json", "/nowhere", "/"}
    assert len(paths) > 25
    for path in paths:
        for method in ("GET", "POST", "DELETE", "HEAD", "OPTIONS"):
            url = server.url + path.replace("{job}", "0" * 32).replace("{index}", "0")
            status = server.http.request(method, url).status_code
            assert (status == 401) == (path not in ("/", "/healthz", "/readyz")), (method, path)
    assert server.http.get(f"{server.url}/healthz").status_code == 200
    for path in (
        "/healthz/",
        "/HEALTHZ",
        "//healthz",
        "/healthz/../jobs",
        "/readyz%00",
        "/x/healthz",
    ):
        assert server.http.get(server.url + path).status_code == 401, path


def test_a_key_is_sent_as_bearer_or_as_the_password(
    keyed: tuple[Server, dict[str, str]],
) -> None:
    server, secrets = keyed
    good = secrets["alice"]
    for header in (f"Bearer {good}", f"bearer  {good}", f"Basic {b64(f'any:{good}'.encode())}"):
        assert (
            server.http.get(f"{server.url}/jobs", headers={"Authorization": header}).status_code
            == 200
        )
    for header in (
        *(
            "",
            "Bearer",
            f"Bearer {good}x",
            f"Bearer {good[:-1]}",
            f"Bearer {good} {good}",
        ),
        *("Basic ?", f"Basic {b64(good.encode())}", f"Basic {b64(f'{good}:'.encode())}"),
        *(f"Token {good}", good, f"Bearer {digest_of(good)}", "Bearer \xe9", f"Basic {b64(b'x:')}"),
    ):
        sent = {"Authorization": header.encode("latin-1")}
        answer = server.http.get(f"{server.url}/jobs", headers=sent)
        assert answer.status_code == 401, header
        assert answer.headers["www-authenticate"].startswith("Basic")
        assert good not in answer.text
    twice = [("Authorization", f"Bearer {good}"), ("Authorization", "Bearer x")]
    assert server.http.get(f"{server.url}/jobs", headers=twice).status_code == 401
    assert server.http.get(f"{server.url}/jobs?key={good}&api_key={good}").status_code == 401


def test_nobody_sees_or_ends_anothers_job(keyed: tuple[Server, dict[str, str]]) -> None:
    server, secrets = keyed
    mine, other = bearer(secrets["alice"]), bearer(secrets["bob"])
    job = server.http.post(f"{server.url}/jobs", json={"prompt": "private"}, headers=mine).json()
    url = f"{server.url}/jobs/{job['id']}"
    for method, path in (
        *(("GET", ""), ("GET", "/events"), ("POST", "/cancel"), ("DELETE", "")),
        ("GET", "/images/0"),
    ):
        assert server.http.request(method, url + path, headers=other).status_code == 404, path
    assert job["id"] not in server.http.get(f"{server.url}/jobs", headers=other).text
    assert "private" not in server.http.get(f"{server.url}/sdapi/v1/progress", headers=other).text
    assert server.http.get(url, headers=mine).status_code == 200


def test_a_key_has_its_share_at_once(keyed: tuple[Server, dict[str, str]]) -> None:
    server, secrets = keyed
    body = {"prompt": "x", "num_steps": 100}
    url, key = f"{server.url}/jobs", bearer(secrets["bob"])
    first, second = (server.http.post(url, json=body, headers=key) for _ in range(2))
    assert (first.status_code, second.status_code) == (202, 429)
    assert int(second.headers["retry-after"]) >= 1
    cancel = f"{server.url}/jobs/{first.json()['id']}/cancel"
    server.http.post(cancel, headers=bearer(secrets["bob"])).raise_for_status()
    until(lambda: not server.service._running)  # within a step
    assert server.http.post(url, json=body, headers=key).status_code == 202


@pytest.mark.parametrize("path", ["/jobs", "/v1/images/generations", "/sdapi/v1/txt2img"])
def test_a_key_has_its_rate(keyed: tuple[Server, dict[str, str]], path: str) -> None:
    server, secrets = keyed
    assert server.app is not None
    keys = Keys(server.folder / "keys.json")
    key = keys.holder(secrets["carol"])
    assert key is not None
    assert [keys.wait_for(key, 100.0) for _ in range(3)] == [0, 0, 30]
    assert keys.wait_for(key, 131.0) == 0
    answers = [
        server.http.post(server.url + path, json={"prompt": "x"}, headers=bearer(secrets["carol"]))
        for _ in range(3)
    ]
    assert answers[-1].status_code == 429
    assert answers[-1].headers["retry-after"].isdigit()
    assert (
        server.http.get(f"{server.url}/jobs", headers=bearer(secrets["carol"])).status_code == 200
    )


def test_a_key_removed_from_the_file_is_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    first, second = add_key(file, "first"), add_key(file, "second")
    keys = Keys(file)
    assert keys.holder(first) is not None
    access.write_keys(file, tuple(key for key in read_keys(file) if key.name != "first"))
    assert keys.holder(first) is None
    assert keys.holder(second) is not None
    file.write_text("{")
    assert keys.holder(second) is not None  # a broken file locks nobody out, and lets nobody in
    assert keys.holder(first) is None


def test_only_digests_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    secret = add_key(file, "alice", rate=5)
    assert secret not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert json.loads(file.read_text())["keys"] == [
        {"name": "alice", "sha256": digest_of(secret), "rate": 5, "concurrency": 0}
    ]
    assert len(secret) > 40
    with pytest.raises(ConfigError, match="alice"):
        add_key(file, "alice")


@pytest.mark.parametrize("name", ["", "../x", "a b", "a\n", "-x", "x" * 65, "a/b"])
def test_a_name_of_a_key_is_plain(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        add_key(tmp_path / "keys.json", name)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"keys": []}', '{"keys": [{}]}', '{"keys": [{"name": "a"}]}', "x"]
)
def test_a_file_of_keys_without_any_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "keys.json"
    file.write_text(content)
    with pytest.raises(ConfigError):
        Keys(file)


def test_keys_are_compared_in_constant_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys.json"
    secret = add_key(file, "a")
    add_key(file, "b")
    compared: list[str] = []

    def counted(mine: str, given: str) -> bool:
        compared.append(given)
        return mine == given

    monkeypatch.setattr(access.hmac, "compare_digest", counted)
    keys = Keys(file)
    assert keys.holder(secret) is not None
    assert keys.holder("x") is None
    assert compared == [digest_of(secret)] * 2 + [digest_of("x")] * 2  # all, whichever it is


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "pictures.example", ""])
def test_others_are_let_in_with_keys_only(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="keys"):
        Access(host=host)
    file = tmp_path / "keys.json"
    add_key(file, "a")
    Access(host=host, keys=Keys(file))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.9.1"])
def test_this_machine_is_let_in_without(host: str) -> None:
    Access(host=host)


def test_the_command_refuses_to_let_others_in_without_keys() -> None:
    _, said = command_line.sanakit("serve", "--host", "0.0.0.0", "--port", "0", code=2)
    assert "sanakit keys add" in said


@pytest.mark.parametrize("option", ["--history-size", "--deadline", "--drain"])
def test_numbers_that_would_keep_nothing_or_end_all_are_refused(option: str) -> None:
    # A host without keys, so that what does take the number goes no further.
    _, said = command_line.sanakit("serve", "--host", "0.0.0.0", option, "-1", code=2)
    assert option in said


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = ServeSettings(
        model=MODEL,
        access=Access(hosts=("pictures.example",), origins=("https://front.example",)),
    )
    with listening(tmp_path_factory.mktemp("plain"), None, settings) as one:
        yield one


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *(("localhost", 200), ("LOCALHOST:81", 200), ("127.0.0.1:9", 200), ("[::1]:9", 200)),
        *(("pictures.example", 200), ("localhost.", 200)),
        *(("evil.example", 403), ("localhost.evil.example", 403), ("127.0.0.1.nip.io", 403)),
        *(("10.0.0.1", 403), ("evil.example:80", 403), ("xn--80ak6aa92e", 403)),
        *(("", 400), ("a b", 400), ("localhost@evil.example", 400), ("[::1", 400)),
        *(("localhost:x", 400), ("localhost/..", 400), ("a" * 300, 400)),
    ],
)
def test_a_foreign_name_of_this_machine_is_refused(plain: Server, host: str, status: int) -> None:
    answer = plain.http.get(f"{plain.url}/jobs", headers={"Host": host})
    assert answer.status_code == status
    assert plain.http.get(f"{plain.url}/healthz", headers={"Host": "10.1.2.3"}).status_code == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        *(("null", 403), ("https://evil.example", 403), ("", 403), ("file://", 403)),
        *(("http://127.0.0.1", 403), ("http://localhost:1", 403), ("chrome-extension://x", 403)),
        ("https://front.example", 202),
    ],
)
def test_a_foreign_page_is_refused(plain: Server, origin: str, status: int) -> None:
    answer = plain.http.post(f"{plain.url}/jobs", json={"prompt": "x"}, headers={"Origin": origin})
    assert answer.status_code == status
    own = plain.http.post(f"{plain.url}/jobs", json={"prompt": "x"}, headers={"Origin": plain.url})
    assert own.status_code == 202
    assert "access-control-allow-origin" not in {**answer.headers, **own.headers}


def test_a_form_of_a_foreign_page_is_no_request(plain: Server) -> None:
    body = '{"prompt": "x"}'
    for kind in ("text/plain", "application/x-www-form-urlencoded", None):
        headers = {} if kind is None else {"Content-Type": kind}
        for path in ("/jobs", "/v1/images/generations", "/sdapi/v1/txt2img"):
            answer = plain.http.post(plain.url + path, content=body, headers=headers)
            assert 400 <= answer.status_code < 500, (kind, path)


def test_browsers_are_told_to_trust_nothing(plain: Server) -> None:
    for path in ("/jobs", "/docs", "/nowhere", "/v1/models", "/healthz"):
        headers = plain.http.get(plain.url + path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["referrer-policy"] == "no-referrer"


def test_no_web_socket_is_opened() -> None:
    sent: list[Any] = []

    async def app(*_: Any) -> None:
        raise AssertionError("it was passed on")

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    asyncio.run(Guard(app, Access())({"type": "websocket", "path": "/"}, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_no_key_reaches_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = add_key(tmp_path / "keys.json", "a")
    handler = logging.StreamHandler()
    logger = logging.getLogger("uvicorn.error")
    logger.addHandler(handler)
    try:
        access.scrub_logs()
        logger.error("GET /jobs?key=%s", secret)
        logger.error("headers %r", {"Authorization": f"Basic {b64(f'u:{secret}'.encode())}"})
        try:
            raise ValueError(f"Bearer {secret}")
        except ValueError:
            logger.exception("it failed")
    finally:
        logger.removeHandler(handler)
    said = capsys.readouterr().err
    assert said.count("[key]") == 3
    assert secret not in said
    assert b64(f"u:{secret}".encode()) not in said
    assert "it failed" in said
    assert scrubbed("the basic rule of a bearer is kept") == "the basic rule of a bearer is kept"


def test_keys_are_made_listed_and_removed(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    secret, _ = command_line.sanakit("keys", "add", "alice", file, "--rate", "10")
    secret = secret.strip()
    assert Keys(file).holder(secret) == Key(name="alice", sha256=digest_of(secret), rate=10)
    listed, _ = command_line.sanakit("keys", "list", file)
    assert listed.split()[:4] == ["alice", "10", "a", "minute"]
    assert secret not in listed
    command_line.sanakit("keys", "remove", "alic", file, code=2)
    command_line.sanakit("keys", "remove", "alice", file)
    assert read_keys(file) == ()
