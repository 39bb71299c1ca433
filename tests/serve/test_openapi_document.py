"""Requests made from our own description of the routes: none may make the server fail.

The longer run: ``SANAKIT_EXAMPLES=200 python -m pytest tests/serve/test_openapi_document.py``.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from sanakit.serve.limits import Limits
from sanakit.serve.settings import ServeSettings
from tiny_server import MODEL, Server, listening

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import schemathesis
    from schemathesis.checks import not_a_server_error

EXAMPLES = int(os.environ.get("SANAKIT_EXAMPLES", "4"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    limits = Limits(pixels=128 * 128, steps=4, count=2)
    with listening(
        tmp_path_factory.mktemp("openapi"), None, ServeSettings(model=MODEL, limits=limits)
    ) as one:
        yield one


def test_no_request_makes_the_server_fail(server: Server) -> None:
    document = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [found.ok() for found in document.get_all_operations()]
    assert len(operations) > 25
    for operation in operations:

        @given(case=operation.as_strategy())
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def ask(case: schemathesis.Case) -> None:
            case.call_and_validate(checks=[not_a_server_error], timeout=30)

        ask()


def test_the_document_tells_every_route(server: Server, tmp_path: Path) -> None:
    told = server.http.get(f"{server.url}/openapi.json").json()
    paths = set(told["paths"])
    assert {"/jobs", "/v1/images/generations", "/v1/images/edits", "/sdapi/v1/txt2img"} <= paths
    form = told["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"]
    assert "image[]" in form["multipart/form-data"]["schema"]["properties"]
    page = server.http.get(f"{server.url}/docs")
    assert page.status_code == 200
    assert "http://" not in page.text.replace("http://127.0.0.1", "")
    assert "<script" not in page.text
