"""The files of the page, as far as they can be judged without a browser."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sanakit.serve.access import HEADERS, OPEN, PAGE

MARKUP = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment"
    r"|\beval\b|new Function|setHTML|srcdoc"
)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture
def tags() -> list[tuple[str, dict[str, str | None]]]:
    parser = Tags()
    parser.feed((PAGE / "index.html").read_text())
    return parser.found


@pytest.mark.parametrize("file", sorted(PAGE.glob("*.js")), ids=lambda file: file.name)
def test_no_text_is_ever_parsed_as_markup_or_code(file: Path) -> None:
    assert MARKUP.findall(file.read_text()) == []


def test_nothing_is_inline_so_that_the_policy_holds(
    tags: list[tuple[str, dict[str, str | None]]],
) -> None:
    policy = HEADERS["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    for tag, attributes in tags:
        assert tag != "style"
        assert tag != "script" or attributes.get("src")
        assert not [name for name in attributes if name == "style" or name.startswith("on")]


def test_all_that_the_page_loads_lies_beside_it_and_asks_for_no_key(
    tags: list[tuple[str, dict[str, str | None]]],
) -> None:
    named = [
        value
        for tag, attributes in tags
        for name, value in attributes.items()
        if tag != "a" and name in ("src", "href") and value
    ]
    for file in PAGE.glob("*.js"):
        named += re.findall(r'^import .* from "\./([^"]+)";$', file.read_text(), re.MULTILINE)
    assert {"app.js", "style.css", "server.js"} <= set(named)
    for name in named:
        assert (PAGE / name).is_file(), name
        assert f"/{name}" in OPEN
    for file in PAGE.iterdir():
        assert not re.search(r"(?:url\(|@import|from \"http)", file.read_text()) or (
            file.suffix == ".svg"
        )
