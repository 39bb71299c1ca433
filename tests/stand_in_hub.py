"""A hub on loopback: the part of its HTTP interface that fetching a model needs, and its faults.

Shaped after what ``huggingface_hub`` asks: model info with blobs, HEAD and GET of ``resolve`` with
etags, large files by a redirect to another host, ranges, and the error codes in ``X-Error-Code``.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import close_session, constants

LARGE = (".safetensors", ".bin")
TOKEN = "hf_stand_in"


def commit_id(number: int) -> str:
    return hashlib.sha1(f"commit {number}".encode()).hexdigest()


def git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repository:
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    licence: str = "nscl-v2-custom"

    def commit(self, files: dict[str, bytes], *, branch: str = "main") -> str:
        name = commit_id(len(self.commits))
        self.commits[name] = files
        self.branches[branch] = name
        return name


@dataclass
class StandInHub:
    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)
    """What the storage of large files answers, by sha256."""
    cut_after: dict[str, int] = field(default_factory=dict)
    """Bytes after which an answer breaks off, by sha256; once."""
    broken: set[str] = field(default_factory=set)
    """Contents for which the storage answers 500."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    tokens: list[tuple[str, str | None]] = field(default_factory=list)
    """Authorization header by host."""

    def publish(self, name: str, files: dict[str, bytes], **more: object) -> str:
        repository = self.repositories.setdefault(name, Repository(**more))
        for path, content in files.items():
            if path.endswith(LARGE):
                self.contents[hashlib.sha256(content).hexdigest()] = content
        return repository.commit(files)

    def downloaded(self) -> list[str]:
        return [path for method, path in self.requests if method == "GET" and "/api/" not in path]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: StandInHub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        host = (self.headers["Host"] or "").split(":")[0]
        self.hub.tokens.append((host, self.headers.get("Authorization")))
        if path.startswith("/storage/"):
            return self._large(path.removeprefix("/storage/"))
        api = path.startswith("/api/models/")
        owner, name, *rest = path.removeprefix("/api/models").strip("/").split("/")
        repository = self.hub.repositories.get(f"{owner}/{name}")
        if repository is None:
            return self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
        if api:
            return self._info(f"{owner}/{name}", repository, rest[1] if rest else "main")
        if repository.gated:
            return self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        return self._file(repository, rest[1], "/".join(rest[2:]))

    def _info(self, name: str, repository: Repository, revision: str) -> None:
        if repository.gated:
            return self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        siblings = []
        for path, content in repository.commits[commit].items():
            row: dict[str, object] = {
                "rfilename": path,
                "size": len(content),
                "blobId": git_id(content),
            }
            if path.endswith(LARGE):
                sha256 = hashlib.sha256(content).hexdigest()
                row["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130}
            siblings.append(row)
        card = {"license": "other", "license_name": repository.licence}
        content = {"id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": []}
        self._send(200, json.dumps({**content, "cardData": card}).encode())

    def _file(self, repository: Repository, revision: str, path: str) -> None:
        commit = repository.branches.get(revision, revision)
        content = repository.commits.get(commit, {}).get(path)
        if content is None:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        headers = {"X-Repo-Commit": commit, "ETag": f'"{git_id(content)}"'}
        if not path.endswith(LARGE):
            return self._send(200, content, headers)
        sha256 = hashlib.sha256(content).hexdigest()
        # Another host name, as with the real hub: what belongs to one must not reach the other.
        port = urlsplit(self.hub.url).port
        headers |= {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(content))}
        return self._send(
            302, b"", {**headers, "Location": f"http://localhost:{port}/storage/{sha256}"}
        )

    def _large(self, sha256: str) -> None:
        if sha256 in self.hub.broken:
            return self._send(500, b"")
        content, status, headers = self.hub.contents[sha256], 200, {}
        wanted = self.headers.get("Range")
        if wanted is not None:
            self.hub.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            content, status = content[start:], 206
        return self._send(status, content, headers, cut=self.hub.cut_after.pop(sha256, None))

    def _send(
        self,
        status: int,
        content: bytes,
        headers: dict[str, str] | None = None,
        cut: int | None = None,
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:cut])
        if cut is not None:
            self.close_connection = True


@contextmanager
def serving(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    """Serve, and make ``huggingface_hub`` use it and the empty ``cache``."""
    hub = StandInHub()
    handler = type("BoundHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    # An answer that breaks off loses what does not fill a chunk.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    try:
        yield hub
    finally:
        close_session()
        server.shutdown()
        thread.join()
        server.server_close()


def pipeline_files(variants: dict[str, list[str | None]] | None = None) -> dict[str, bytes]:
    """The files of a published pipeline; what they hold is not a model."""
    chosen = variants or {part: [None, "fp16"] for part in ("text_encoder", "transformer", "vae")}
    kinds = {
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "text_encoder": ["transformers", "Gemma2Model"],
        "tokenizer": ["transformers", "GemmaTokenizerFast"],
        "transformer": ["diffusers", "SanaTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderDC"],
    }
    files = {
        "model_index.json": json.dumps({"_class_name": "SanaPipeline", **kinds}).encode(),
        "README.md": b"a model card",
        "scheduler/scheduler_config.json": b"{}",
        "tokenizer/tokenizer.json": b"{}",
        "tokenizer/tokenizer.model": b"\x0a\x0b",
    }
    for part, held in chosen.items():
        files[f"{part}/config.json"] = b"{}"
        stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        for variant in held:
            middle = "" if variant is None else f".{variant}"
            content = f"{part}{middle}".encode() * 5000
            files[f"{part}/{stem}{middle}.safetensors"] = content
    return files
