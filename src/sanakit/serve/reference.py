"""The page at /docs: every route, what it takes and what it answers; no script, no network."""

from __future__ import annotations

import json
from html import escape
from typing import Any

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;"
    "color-scheme:light dark}code,pre{font:14px ui-monospace,monospace}pre{overflow:auto}"
    "summary{cursor:pointer;padding:.4rem 0}b{display:inline-block;min-width:4.5rem}"
)


def page(document: dict[str, Any], style: str) -> str:
    """Give an OpenAPI document as a page, with its style at a path of its own."""
    title = escape(document["info"]["title"])
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><link rel="stylesheet" href="{style}">'
        f'<h1>{title}</h1><p>The same as JSON: <a href="/openapi.json">/openapi.json</a></p>'
    ]
    for path, methods in document["paths"].items():
        for method, about in methods.items():
            parts.append(_operation(method.upper(), path, about))
    parts.append("<h2>Types</h2>")
    for name, schema in document.get("components", {}).get("schemas", {}).items():
        parts.append(_folded(f"<code id={escape(name)!r}>{escape(name)}</code>", schema))
    return "".join(parts)


def _operation(method: str, path: str, about: dict[str, Any]) -> str:
    told = {key: about[key] for key in ("parameters", "requestBody", "responses") if key in about}
    summary = f"<b>{method}</b> <code>{escape(path)}</code> {escape(about.get('summary', ''))}"
    return _folded(summary, told, escape(about.get("description", "")))


def _folded(summary: str, content: Any, text: str = "") -> str:
    shown = escape(json.dumps(content, indent=2, ensure_ascii=False))
    return f"<details><summary>{summary}</summary><p>{text}</p><pre>{shown}</pre></details>"
