"""Puts what a preset begins with into one folder, to take along to a machine without a network.

`python -m recipes.glyph.inputs gpu --data data/glyph --to .gpu-inputs`
DATA is a set that `python -m recipes.glyph build` made: its drawings are taken, and its dictionary.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from recipes.glyph.data.build import DRAWINGS
from recipes.glyph.data.packages import WORDNET, verify
from recipes.glyph.data.rows.all_rows import ROWS
from recipes.glyph.data.stages import read_marks
from recipes.glyph.presets import Preset, read_preset
from sanakit.data.units import MARK
from sanakit.errors import ConfigError, SanakitError

MOST_MB = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Copy, and say how much it is; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m recipes.glyph.inputs", description=__doc__)
    parser.add_argument("preset")
    parser.add_argument("--data", type=Path, default=Path("data/glyph"))
    parser.add_argument("--packages", type=Path, help="folder of the dictionary; DATA/packages")
    parser.add_argument("--to", type=Path, default=Path(".gpu-inputs"))
    parser.add_argument("--set", dest="changes", metavar="SECTION.KEY=VALUE", action="append")
    options = parser.parse_args(arguments)
    try:
        preset = read_preset(options.preset, options.changes or [])
        size = gather(preset, options.data, options.packages, options.to)
    except SanakitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{options.to}: {size / 1e6:.1f} MB")
    return 0


def gather(preset: Preset, data: Path, packages: Path | None, folder: Path) -> int:
    """Copy the drawings of the preset's rows, and the dictionary's archive; gives the bytes.

    Raises:
        ConfigError: there is no such row, or it is more than may travel.
        DataError: a file is missing or damaged.
    """
    names = [row.name for row in ROWS]
    if unknown := sorted(set(preset.data.without) - set(names)):
        raise ConfigError(f"no row {unknown[0]!r}", hint=f"rows: {', '.join(names)}")
    source = data / DRAWINGS
    marks = read_marks(source, [name for name in names if name not in preset.data.without])
    files = [source / name for mark in marks.values() for name in mark.files]
    files += [source / f"{name}{MARK}" for name in marks]
    pairs = [(path, folder / DRAWINGS / path.name) for path in files]
    if preset.tokenizer.dictionary:
        archive = verify(WORDNET, packages or data / "packages")
        pairs.append((archive, folder / archive.name))
    size = sum(path.stat().st_size for path, _ in pairs)
    if size > MOST_MB * 1e6:
        raise ConfigError(
            f"{size / 1e6:.1f} MB of inputs are more than {MOST_MB:g}",
            hint="leave rows out: --set 'data.without=[\"emoji_3d\"]'",
        )
    shutil.rmtree(folder / DRAWINGS, ignore_errors=True)
    (folder / DRAWINGS).mkdir(parents=True)
    for path, target in pairs:
        shutil.copyfile(path, target)
    return size


if __name__ == "__main__":
    sys.exit(main())
