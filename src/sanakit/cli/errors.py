"""Errors as a user sees them: one message, a hint, an exit code, never a traceback."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from sanakit.cli.terminal import say, say_error
from sanakit.errors import ConfigError, SanakitError, did_you_mean, nearest_names

# Typer brings its own click or the public one, by version.
UsageError: Any = typer.BadParameter.__bases__[0]
ELSEWHERE = {
    "--adapter": "--lora",
    "--bf16": "--dtype bfloat16",
    "--cfg": "--guidance",
    "--cfg-scale": "--guidance",
    "--cpu": "--device cpu",
    "--cuda": "--device cuda",
    "--filename": "--out",
    "--fp16": "--dtype float16",
    "--gpu": "--device cuda",
    "--guidance-scale": "--guidance",
    "--instance-data-dir": "--data",
    "--max-train-steps": "--steps",
    "--model": "--from",
    "--mps": "--device mps",
    "--num": "--count",
    "--num-images-per-prompt": "--count",
    "--num-inference-steps": "--steps",
    "--num-steps": "--steps",
    "--output-dir": "--out",
    "--pretrained-model-name-or-path": "--from",
    "--rank": "--lora",
    "--resolution": "--width and --height",
    "--sampler": "--solver",
    "--size": "--width and --height",
    "--torch-dtype": "--dtype",
    "--train-batch-size": "--batch-size",
    "-v": "--version",
}
"""Options of other programs, and what to write here."""
COMMANDS_ELSEWHERE = {
    "draw": "generate",
    "help": "--help",
    "list": "models list",
    "pull": "models pull",
    "txt2img": "generate",
    "version": "--version",
}
INTERRUPTED = 130
RANGE = re.compile("than or equal to|in the range")
"""How parsers of several versions say that a number is out of range."""
NO_MEMORY = 4


class FriendlyGroup(TyperGroup):
    """A command of commands: whatever a user can cause becomes ``error: ...`` and an exit code."""

    typed: Sequence[str] = ()

    def make_context(self, info_name: Any, args: list[str], *more: Any, **extra: Any) -> Any:
        """Read what was typed before the command's name."""
        self.typed = tuple(args)
        with friendly(self.typed):
            return super().make_context(info_name, args, *more, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was typed."""
        with friendly(self.typed):
            return super().invoke(ctx)


@contextmanager
def friendly(typed: Sequence[str]) -> Iterator[None]:
    """Turn errors inside into a message and an exit code; ``typed`` is the command line."""
    try:
        yield
    except SanakitError as error:
        raise _told(error) from None
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            raise
        raise _told(_explained(error, typed)) from None
    except KeyboardInterrupt:
        say("stopped; nothing was written", err=True)
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        # The reader went away (`| head`): nothing is wrong, and a message would not be read.
        raise SystemExit(0) from None
    except OSError as error:
        about = f"{error.filename}: " if error.filename else ""
        raise _told(SanakitError(f"{about}{error.strerror or error}")) from None
    except MemoryError:
        say_error("there is not enough memory for it")
        raise SystemExit(NO_MEMORY) from None


def _told(error: SanakitError) -> SystemExit:
    say_error(error.message)
    if error.hint:
        say(f"hint: {error.hint}", err=True)
    return SystemExit(error.exit_code)


def _explained(error: Any, typed: Sequence[str]) -> SanakitError:
    """What the parser found, with the value, the rule and the nearest that works."""
    context = error.ctx
    usage = "sanakit" if context is None else context.command_path
    usage = usage.removeprefix("python -m ").strip()
    kind = type(error).__name__
    if kind == "NoSuchOption":
        known = [] if context is None else _options(context)
        return ConfigError(
            f"{usage} has no option {error.option_name!r}",
            hint=_nearest_option(error.option_name, known),
        )
    if kind == "MissingParameter":
        name = (error.param.name if error.param.param_type_name == "argument" else None) or ""
        missing = name.upper() or error.param.opts[0]
        return ConfigError(f"{usage} needs {missing}", hint=f"see {usage} --help")
    if kind == "BadParameter" and error.param is not None:
        return _wrong_value(error, typed)
    said = str(error.format_message())
    if extra := re.search(r"unexpected extra arguments? ?\(?s?\)? ?\((.*)\)", said):
        return ConfigError(
            f"{usage} takes no further {extra[1]!r}",
            hint="put a text of several words into quotes" if "generate" in usage else None,
        )
    if named := re.match(r"No such command '(.*?)'\.", said):
        near = did_you_mean(named[1], list(context.command.commands))
        if context.parent is None and named[1].lower() in COMMANDS_ELSEWHERE:
            near = f"it is sanakit {COMMANDS_ELSEWHERE[named[1].lower()]}"
        elif context.parent is None and " " in named[1]:
            near = f'to draw it: sanakit generate "{named[1]}"'
        return ConfigError(f"{usage} has no command {named[1]!r}", hint=near)
    return ConfigError(said.rstrip("."), hint=f"see {usage} --help")


def _options(context: Any) -> list[str]:
    parameters = context.command.get_params(context)
    return [name for one in parameters for name in (*one.opts, *one.secondary_opts) if "--" in name]


def _nearest_option(name: str, known: Sequence[str]) -> str:
    spelled = name.lower().replace("_", "-")
    if spelled in known:
        return f"did you mean {spelled!r}?"
    if spelled in ELSEWHERE and ELSEWHERE[spelled].split()[0] in known:
        return f"it is {ELSEWHERE[spelled]} here"
    if spelled == "--prompt":
        return "the prompt is given without a name: sanakit generate PROMPT"
    near = [one for one in nearest_names(spelled, known) if one != "--help"]
    return f"did you mean {near[0]!r}?" if near else "see --help"


def _wrong_value(error: Any, typed: Sequence[str]) -> SanakitError:
    """A value of the wrong type; the parser's own message does not name it."""
    names = error.param.opts
    given = _value_of(names, typed)
    name = names[0].upper() if error.param.param_type_name == "argument" else names[0]
    shown = name if given is None else f"{name} {given!r}"
    said = str(error.message)
    number = re.search(r"-?\d+(?:[.,]\d+)?", given or "")
    found = None if number is None else number[0].replace(",", ".")
    if "integer" in said:
        near = str(round(value)) if math.isfinite(value := float(found or "nan")) else None
        return ConfigError(f"{shown} must be a whole number", hint=_write(name, near))
    if "number" in said or "float" in said:
        return ConfigError(f"{shown} must be a number", hint=_write(name, found))
    bounds = re.findall(r"-?\d+(?:\.\d+)?", [*RANGE.split(said, maxsplit=1), ""][1])
    if bounds and found is not None:
        value = float(found)
        near = min(bounds, key=lambda bound: abs(float(bound) - value))
        rule = "at least" if float(near) > value else "at most"
        return ConfigError(f"{shown} must be {rule} {near}", hint=_write(name, near))
    if bounds:  # "nan", which is no more below a bound than above it
        return ConfigError(f"{shown} must be a number of at least {bounds[0]}")
    if "not one of" in said:
        choices = re.findall(r"'([^']*)'", said.partition("not one of")[2])
        return ConfigError(f"{shown} is unknown", hint=did_you_mean(given, choices))
    return ConfigError(f"{shown}: {said.rstrip('.')}")


def spelled_here(key: str, known: Container[str]) -> str | None:
    """The hint for a key that is another program's name of one of the known options, if it is."""
    here = ELSEWHERE.get(f"--{key[:60].lower().replace('_', '-')}", "").removeprefix("--")
    return f"it is {here!r} here" if here in known else None


def _write(name: str, value: str | None) -> str | None:
    return None if value is None else f"write {name} {value}"


def _value_of(names: Sequence[str], typed: Sequence[str]) -> str | None:
    """The last value that an option was given on the command line."""
    found = None
    for at, text in enumerate(typed):
        option, equals, value = text.partition("=")
        if option in names:
            found = value if equals else typed[at + 1] if at + 1 < len(typed) else None
    return found
