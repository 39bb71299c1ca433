"""A file of prompts, one a line, each with options of its own; every line is checked at once."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import Any, get_args

from sanakit.cli import options
from sanakit.cli.errors import spelled_here
from sanakit.cli.terminal import say
from sanakit.errors import ConfigError, DataError, SanakitError, check_unicode, did_you_mean
from sanakit.files import expanded
from sanakit.untrusted import fits, parse_json, read_file, shown, whole_number

NAMES: Mapping[str, Any] = MappingProxyType(
    {
        "prompt": options.Prompt,
        "negative": options.Negative,
        "seed": options.Seed,
        "width": options.Side,
        "height": options.Side,
        "steps": options.Steps,
        "guidance": options.GuidanceScale,
        "count": options.Count,
        "solver": options.Solver,
        "model": options.Model,
        "output": options.Out,
    }
)
"""What a line may say, and the option of `generate` that it is."""
OTHERWISE: Mapping[str, str] = MappingProxyType(
    {
        other.removeprefix("--").replace("-", "_"): name
        for name, option in NAMES.items()
        for other in get_args(option)[1].param_decls or ()
        if other.startswith("--")
    }
)
"""Every spelling that the command takes, such as ``negative_prompt``, and the key that it is."""
FORMATS = (
    "a .txt holds a prompt a line (comments begin with #), a .jsonl an object a line, a .csv a row "
    "of names first"
)
MOST_TOLD = 10
MOST_LETTERS = 200
RESERVED = frozenset(
    ["con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))]
)
"""Names that are devices on Windows, with any ending."""


@dataclass(frozen=True, kw_only=True)
class PromptLine:
    """What one line of a file asks for, by the keys of `NAMES`; ``number`` counts from 1."""

    number: int
    asked: dict[str, Any]


@dataclass
class Faults:
    """What is wrong with the lines of a file, told together."""

    path: Path
    found: list[tuple[int, SanakitError]] = field(default_factory=list)

    @contextmanager
    def of(self, number: int) -> Iterator[None]:
        """Take an error inside the block for one of that line."""
        try:
            yield
        except SanakitError as error:
            self.found.append((number, error))

    def tell(self) -> None:
        """End the command where there are any; of several the first ten are printed.

        Raises:
            SanakitError: of the kind of the first.
        """
        if not self.found:
            return
        number, first = self.found[0]
        for line, error in self.found[1:MOST_TOLD]:
            say(f"{self.path}, line {line}: {error.message}", err=True)
        more = len(self.found) - 1
        others = f"; {more} other line{'s' * (more > 1)} cannot be drawn either" if more else ""
        raise type(first)(f"{self.path}, line {number}: {first.message}{others}", hint=first.hint)


def read_prompts(path: Path, faults: Faults) -> list[PromptLine]:
    """Read a file of prompts by its ending; lines that are empty say nothing.

    In a ``.txt`` neither do those that begin with ``#``; other files take such a prompt.

    What is wrong with a line goes to ``faults``.

    Raises:
        ConfigError: another ending, no prompt at all, or a table that cannot be read. DataError:
            the file cannot be read.
    """
    path = expanded(path)
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise ConfigError(f"{path}: does not end in {', '.join(READERS)}", hint=FORMATS)
    try:
        text = read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8", hint="save it as UTF-8") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read ({reason})") from error
    found = []
    for number, raw in read(text):
        with faults.of(number):
            found.append(PromptLine(number=number, asked=_asked(raw())))
    if not found and not faults.found:
        raise ConfigError(f"{path}: holds no prompt", hint=FORMATS)
    return found


Read = Iterator[tuple[int, Callable[[], Mapping[str, Any]]]]
"""Numbers of lines, and what reads the values of each."""


def _of_text(text: str) -> Read:
    for number, line in _lines(text):
        if not line.lstrip().startswith("#"):
            yield number, partial(dict, prompt=line.strip())


def _of_jsonl(text: str) -> Read:
    for number, line in _lines(text):
        yield number, partial(_object, line)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    # Only ends of lines end a line: a prompt may hold any other separator of Unicode.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line


def _object(line: str) -> dict[str, Any]:
    try:
        values = parse_json(line)
    except ValueError as error:
        raise ConfigError(f"is not JSON ({error})", hint='{"prompt": "a cat", "seed": 1}') from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"is a {type(values).__name__}, not an object", hint='{"prompt": "a cat", "seed": 1}'
        )
    return values


def _of_csv(text: str) -> Read:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        names = [name.strip() for name in next(rows, [])]
        for row in rows:
            if any(cell.strip() for cell in row):
                yield rows.line_num, partial(_cells, names, row)
    except csv.Error as error:
        raise ConfigError(f"line {rows.line_num}: is no row of a .csv ({error})") from error


def _cells(names: list[str], row: list[str]) -> dict[str, Any]:
    """Give the cells of a row that say something; numbers are read as such."""
    if len(row) > len(names):
        raise ConfigError(
            f"has {len(row)} cells, the first row {len(names)} names",
            hint='put a text with commas into quotes: "a cat, black",1',
        )
    if len(set(names)) < len(names):
        raise ConfigError("the first row names a column twice", hint="name each once")
    values = {name: cell for name, cell in zip(names, row, strict=False) if cell.strip()}
    if "prompt" in names:
        values.setdefault("prompt", "")
    return {name: _number_in(name, cell) for name, cell in values.items()}


def _number_in(name: str, cell: str) -> Any:
    """The number that a cell is, where its option takes one; else the cell."""
    kinds = _kinds(NAMES.get(OTHERWISE.get(name, name)))
    if int in kinds and (whole := whole_number(cell)) is not None:
        return whole
    if float in kinds:
        try:
            return float(cell)
        except ValueError:
            return cell
    return cell


READERS: Mapping[str, Callable[[str], Read]] = MappingProxyType(
    {".txt": _of_text, ".jsonl": _of_jsonl, ".csv": _of_csv}
)


def _asked(values: Mapping[str, Any]) -> dict[str, Any]:
    """Check what a line says, key by key; a null says nothing."""
    asked: dict[str, Any] = {}
    for key, value in values.items():
        name = OTHERWISE.get(key, key)
        if name not in NAMES:
            raise ConfigError(
                f"unknown key {shown(key)}",
                hint=spelled_here(key, NAMES) or did_you_mean(key, NAMES),
            )
        if name in asked:
            raise ConfigError(f"says {name} twice", hint=f"{key} is {name}")
        if value is not None:
            asked[name] = _checked(name, value)
    if "prompt" not in asked:
        raise ConfigError("has no prompt", hint='an empty one is "prompt": ""')
    return asked


def _kinds(option: Any) -> tuple[Any, ...]:
    kind = get_args(option)[0] if option is not None else None
    return get_args(kind) or (kind,)


def _checked(name: str, value: Any) -> Any:
    """Hold a value to the type and the range of its option."""
    kinds, rule = _kinds(NAMES[name]), get_args(NAMES[name])[1]
    if not any(fits(value, kind) for kind in kinds):
        what = {int: "a whole number", float: "a number"}.get(kinds[0], "a text")
        raise ConfigError(f"{name}={shown(value)} must be {what}")
    if isinstance(value, str):
        check_unicode(value, name)
    for bound, low in ((rule.min, True), (rule.max, False)):
        if bound is not None and (value < bound if low else value > bound):
            which = "at least" if low else "at most"
            raise ConfigError(f"{name}={shown(value)} must be {which} {bound}")
    return value


def inside(folder: Path, name: str) -> Path:
    """Give the file of a line's ``output`` in a folder, which it cannot leave.

    Raises:
        ConfigError: another folder's file, no PNG, or a name that some system does not have.
    """
    parts = PurePosixPath(name).parts
    windows = PureWindowsPath(name)
    if not parts or name != name.strip() or len(name) > MOST_LETTERS:
        raise ConfigError(f"output={shown(name)} names no file", hint="try a-name.png")
    if ".." in windows.parts or windows.anchor or PurePosixPath(name).is_absolute():
        raise ConfigError(
            f"output={shown(name)} would leave {folder}", hint="name a file inside the folder"
        )
    if any(unicodedata.category(letter)[0] == "C" or letter in '\\:*?"<>|' for letter in name):
        raise ConfigError(
            f"output={shown(name)} holds a letter that not every system has in names",
            hint="letters, digits, spaces, - and _ are safe",
        )
    if any(
        p.startswith(".") or p[-1] in ". " or p.split(".")[0].lower() in RESERVED for p in parts
    ):
        raise ConfigError(
            f"output={shown(name)} is a name that not every system has", hint="try a-name.png"
        )
    if windows.suffix.lower() != ".png":
        raise ConfigError(
            f"output={shown(name)}: pictures are written as PNG", hint=f"try {windows.stem}.png"
        )
    path = folder.joinpath(*parts)
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(
            f"output={shown(name)}: a link leads out of {folder}", hint="name another folder"
        )
    return path
