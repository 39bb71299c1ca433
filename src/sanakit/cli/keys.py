"""`sanakit keys`: the keys that a server asks for, as a file of their digests."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sanakit.cli.terminal import say
from sanakit.errors import ConfigError, did_you_mean

app = typer.Typer(help="Make, list and remove the keys of a server.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="Whose key it is: letters, digits, and . _ -")]
File = Annotated[Path, typer.Argument(help="The file that sanakit serve --keys reads.")]


@app.command()
def add(
    name: Name,
    file: File,
    rate: Annotated[int, typer.Option(min=0, help="Drawings a minute; 0: any.")] = 0,
    concurrency: Annotated[
        int, typer.Option(min=0, help="Drawings that wait or run at once; 0: any.")
    ] = 0,
) -> None:
    """Make a key and print it, this once: the file holds its digest only."""
    from sanakit.serve.access import add_key

    say(add_key(file, name, rate=rate, concurrency=concurrency))


@app.command("list")
def list_(file: File) -> None:
    """List the keys in a file by name, with their rates."""
    from sanakit.serve.access import read_keys

    for key in read_keys(file):
        rate = f"{key.rate} a minute" if key.rate else "any rate"
        say(f"{key.name}  {rate}  {key.concurrency or 'any number'} at once")


@app.command()
def remove(name: Name, file: File) -> None:
    """Remove a key; a running server forgets it at once."""
    from sanakit.serve.access import read_keys, write_keys

    keys = read_keys(file)
    kept = tuple(key for key in keys if key.name != name)
    if len(kept) == len(keys):
        names = [key.name for key in keys]
        raise ConfigError(f"{file} has no key named {name}", hint=did_you_mean(name, names))
    write_keys(file, kept)
