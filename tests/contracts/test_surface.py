"""Everything a user can type: verbs, options and public names; a change of them is on purpose.

`python tests/contracts/test_surface.py > tests/contracts/surface.txt` writes the list anew.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

import sanakit
from sanakit.cli.main import app

LIST = Path(__file__).with_name("surface.txt")
METHODS = ("__init__", "__call__", "from_pretrained", "from_config", "from_pipe", "save_pretrained")


def of_command(command: Any, path: str) -> Iterator[str]:
    options = [" ".join([*p.opts, *p.secondary_opts]) for p in command.params if p.opts]
    yield f"{path}: {', '.join(sorted(options))}"
    for name, inner in sorted(getattr(command, "commands", {}).items()):
        yield from of_command(inner, f"{path} {name}")


def of_names() -> Iterator[str]:
    for name in sorted(sanakit.__all__):
        found = getattr(sanakit, name)
        if not inspect.isclass(found) or not found.__module__.startswith("sanakit."):
            yield f"sanakit.{name}"
            continue
        public = {member for member in dir(found) if not member.startswith("_")}
        inherited = set(dir(__import__("torch").nn.Module))
        ours = [vars(kind) for kind in found.__mro__ if kind.__module__.startswith("sanakit.")]
        always = {method for method in METHODS if any(method in names for names in ours)}
        for member in sorted((public - inherited) | always):
            value = inspect.getattr_static(found, member)
            value = getattr(value, "__func__", value)
            arguments = ""
            if inspect.isfunction(value):
                arguments = f"({', '.join(inspect.signature(value).parameters)})"
            yield f"sanakit.{name}.{member}{arguments}"


def surface() -> str:
    lines = [*of_command(typer.main.get_command(app), "sanakit"), *of_names()]
    return "\n".join(lines) + "\n"


def test_what_can_be_typed_is_what_is_listed() -> None:
    assert surface().splitlines() == LIST.read_text(encoding="utf-8").splitlines()


if __name__ == "__main__":
    print(surface(), end="")
