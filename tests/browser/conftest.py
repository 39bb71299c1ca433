"""A real server with the embedded model, and a real Chromium that looks at its page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from served import Served, served

SHOTS = Path(__file__).parents[2] / "build" / "browser"
NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 90_000
"""Milliseconds that a picture may take."""


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium of this machine; never skipped where there is none, but told."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.fail(
            "no Chromium was found, and the page is not tested without: `apt install chromium`, "
            "or name one: CHROMIUM=/path/to/chromium"
        )
    with sync_playwright() as playwright:
        # Containers have no user namespaces that its sandbox could use.
        chromium = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that most tests share; each leaves jobs behind."""
    with served(tmp_path_factory.mktemp("kept") / "history") as one:
        yield one


@pytest.fixture
def errors() -> list[str]:
    """What the page complained of; a test that provokes complaints empties it."""
    return []


@pytest.fixture
def open_page(browser: Browser, errors: list[str]) -> Iterator[Callable[..., Page]]:
    """Give a function that opens an address in a fresh profile; complaints fail the test."""
    contexts: list[BrowserContext] = []

    def opened(url: str, model: str | None = "glyph", **options: object) -> Page:
        options.setdefault("viewport", {"width": 1360, "height": 900})
        context = browser.new_context(**options)
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda said: said.type == "error" and errors.append(said.text))
        page.on(
            "request",
            lambda asked: (
                asked.url.startswith((url, "data:", "blob:")) or errors.append(f"asks {asked.url}")
            ),
        )
        page.goto(url)
        if model is not None:
            expect(page.locator("#model")).to_have_text(model)
        return page

    expect.set_options(timeout=PATIENCE)
    yield opened
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture
def page(open_page: Callable[..., Page], server: Served) -> Page:
    """The page of the shared server, as on a desk."""
    return open_page(str(server.client.base_url))


@pytest.fixture
def keep_shot() -> Callable[[Page, str], None]:
    """Give a function that keeps what a page looks like, to be looked at."""
    SHOTS.mkdir(parents=True, exist_ok=True)

    def keep(page: Page, name: str) -> None:
        page.screenshot(path=SHOTS / f"{name}.png")

    return keep
