"""What the command prints, and what it does when nobody can read it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from command_line import sanakit
from sanakit.cli import terminal
from sanakit.errors import ConfigError, plain
from sanakit.files import expanded
from sanakit.pipeline.png import encode_png, read_settings

COMMAND = [sys.executable, "-m", "sanakit"]
POSIX = pytest.mark.skipif(os.name != "posix", reason="devices and signals of POSIX")
HOSTILE = "\x1b[2J\x1b]0;title\x07 \u202e \x9b31m\u2028\r\nmodel  other \ud800"


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_picture(name: str = "p.png", **settings: object) -> None:
    import numpy as np

    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    Path(name).write_bytes(encode_png(pixels, settings))


@given(st.text(alphabet=st.characters()))
@settings(deadline=None)
def test_a_plain_text_is_one_line_that_any_stream_can_be_sent(text: str) -> None:
    said = plain(text)
    assert len(said.splitlines()) <= 1
    said.encode()
    kinds = {unicodedata.category(letter) for letter in said} - {"Cf"}
    assert not kinds & {"Cc", "Cs", "Zl", "Zp"}
    assert plain(said) == said


def test_letters_of_all_scripts_stay_as_they_are() -> None:
    text = "Straße 東京 می\u200cروم क्\u200dष 👨\u200d👩\u200d👧 café\u0301 \u00a0"
    assert plain(text) == text


def test_settings_of_a_stranger_move_no_cursor_and_make_no_line() -> None:
    write_picture(prompt=HOSTILE, **{HOSTILE: 1})
    out, err = sanakit("info", "p.png")
    assert len(out.splitlines()) == 2
    assert all(line.isprintable() for line in out.splitlines())
    assert err == ""
    assert json.loads(sanakit("info", "p.png", "--json")[0])["prompt"] == HOSTILE


def test_a_name_in_an_error_moves_no_cursor_and_makes_no_line() -> None:
    _, err = sanakit("generate", "a", "--model", f"./{HOSTILE}", code=3)
    assert len(err.splitlines()) == 2
    assert all(line.isprintable() for line in err.splitlines())


def test_a_picture_without_any_setting_says_so() -> None:
    write_picture()
    assert sanakit("info", "p.png")[0] == "its settings are empty\n"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1"])
def test_a_stream_that_lacks_a_letter_gets_its_escape(encoding: str) -> None:
    write_picture(prompt="a red apple 🍎")
    done = subprocess.run(
        [*COMMAND, "info", "p.png"],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        check=True,
    )
    assert rb"a red apple \U0001f34e" in done.stdout


@pytest.mark.parametrize("name", ["PROMPT", "--negative"])
def test_a_prompt_that_is_no_text_is_refused(name: str) -> None:
    call = ["caf\udce9"] if name == "PROMPT" else ["a", name, "caf\udce9"]
    _, err = sanakit("generate", *call, code=2)
    assert "no whole character" in err
    assert os.listdir() == []


@POSIX
def test_a_full_standard_output_is_an_error_and_a_full_standard_error_is_none() -> None:
    write_picture(prompt="a")
    with Path("/dev/full").open("wb") as full:
        call = [*COMMAND, "info", "p.png"]
        done = subprocess.run(call, stdout=full, stderr=subprocess.PIPE, check=False)
        assert done.returncode == 2
        assert done.stderr.startswith(b"error: standard output: cannot be written")
        assert len(done.stderr.splitlines()) == 2
        call = [*COMMAND, "info", "absent.png"]
        assert subprocess.run(call, stderr=full, check=False).returncode == 2


@POSIX
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_closed_streams_are_no_error_and_no_file_takes_their_place(closed: str) -> None:
    write_picture(prompt="a")
    line = f"{sys.executable} -m sanakit info p.png {closed}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, check=False)
    assert done.returncode == 0
    assert done.stderr == b""
    assert os.listdir() == ["p.png"]


@POSIX
def test_a_picture_is_drawn_where_all_streams_are_closed(model: str) -> None:
    line = f"{sys.executable} -m sanakit generate a -m {model} --steps 1 >&- 2>&- <&-"
    assert subprocess.run(["sh", "-c", line], check=False).returncode == 0
    assert read_settings("out.png")["prompt"] == "a"


@POSIX
def test_a_reader_that_goes_away_is_no_error() -> None:
    line = f"{sys.executable} -m sanakit models list | true"
    done = subprocess.run(["sh", "-c", line], capture_output=True, check=True)
    assert done.stderr == b""


def test_warnings_and_logs_are_notes_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    terminal._say_warning(UserWarning(HOSTILE), UserWarning, "file.py", 1)
    err = capsys.readouterr().err
    assert err.startswith("note: ")
    assert len(err.splitlines()) == 1


@POSIX
def test_termination_ends_by_143_and_leaves_nothing(model: str) -> None:
    call = [*COMMAND, "generate", "a", "--model", model, "--steps", "1000", "-n", "1000"]
    process = subprocess.Popen([*call, "--progress"], stderr=subprocess.PIPE)
    assert process.stderr is not None
    assert any(line.startswith(b"drawing 1/") for line in process.stderr)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert b"Traceback" not in err
    assert os.listdir() == []


def test_a_home_that_is_nobodys_is_the_users_error() -> None:
    with pytest.raises(ConfigError, match="has no home folder"):
        expanded("~nobody-of-that-name/x")


@pytest.mark.parametrize("argument", ["--model", "-o"])
def test_a_name_that_is_too_long_for_the_disk_is_one_line(argument: str) -> None:
    _, err = sanakit("generate", "a", argument, f"{'a' * 300}.png", code=2)
    assert err.startswith("error: ")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("genrate a", "did you mean 'generate'?"),
        ("--versio", "sanakit has no option '--versio'"),
        ("generate", "sanakit generate needs PROMPT"),
        ("generate a red apple", "put a text of several words into quotes"),
        ("generate a --stepz 3", "did you mean '--steps'?"),
        ("generate a --num_inference_steps 3", "it is --steps here"),
        ("train diffusion --model glyph", "it is --from here"),
        ("train diffusion --max_train_steps 9", "it is --steps here"),
        ("generate a --xyz 3", "hint: see --help"),
        ("generate --prompt a", "sanakit generate PROMPT"),
        ("generate a --steps 4.5", "write --steps 4"),
        ("generate a --steps=4,5", "--steps '4,5' must be a whole number"),
        ("generate a --steps many", "--steps 'many' must be a whole number"),
        ("generate a --guidance 4,5", "write --guidance 4.5"),
        ("generate a --guidance nan", "--guidance 'nan' must be a number of at least 0"),
        ("train autoencoder --phase decodr", "did you mean 'decoder'?"),
        ("generate a --seed", "requires an argument"),
        ("models rm", "sanakit models rm needs NAME"),
        ("-V", "it is --version here"),
        ("help", "it is sanakit --help"),
    ],
)
def test_the_parser_names_value_rule_and_the_nearest_that_works(line: str, said: str) -> None:
    out, err = sanakit(*line.split(), code=2)
    assert said in err
    assert err.startswith("error: ")
    assert len(err.splitlines()) <= 2
    assert out == ""
