from __future__ import annotations

import contextlib
import io
import struct
import time
import tracemalloc
import zlib
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sanakit.errors import ConfigError, DataError
from sanakit.pipeline.png import encode_png, parse_parameters, read_settings
from sanakit.pipeline.request import GenerateRequest

PIXELS = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
# Every code point there is: half surrogates, NUL, line ends of all kinds, right-to-left marks.
texts = st.text(st.characters(exclude_categories=()), max_size=20)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
scalars = scalars.filter(lambda value: value not in (float("inf"), float("-inf")))
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=4,
)
QUICK = settings(max_examples=50, deadline=None, derandomize=True)
known = st.sampled_from(
    ["prompt", "negative_prompt", "num_steps", "seed", "solver", "width", "height", "model"]
)


def png_with(**chunks: str) -> bytes:
    info = PngInfo()
    for key, text in chunks.items():
        info.add_text(key, text)
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "png", pnginfo=info)
    return buffer.getvalue()


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "jpeg")
    return buffer.getvalue()


@QUICK
@given(st.dictionaries(known | texts, values, max_size=4))
def test_any_settings_come_back_exactly_and_the_picture_too(settings: dict[str, Any]) -> None:
    data = encode_png(PIXELS, settings)
    assert repr(read_settings(data)) == repr(settings)
    assert np.array_equal(np.array(Image.open(io.BytesIO(data))), PIXELS)
    assert encode_png(PIXELS, settings) == data


@QUICK
@given(st.binary(), st.integers(0, 400))
def test_a_file_with_any_damage_is_read_or_a_data_error(noise: bytes, place: int) -> None:
    data = encode_png(PIXELS, {"prompt": "x", "seed": 1})
    for broken in (noise, data[:place], data[:place] + noise + data[place + len(noise) :]):
        try:
            settings = read_settings(broken)
        except DataError:
            continue
        assert settings["prompt"] == "x"


@pytest.mark.parametrize("bit", range(8))
def test_a_setting_that_lost_a_bit_is_damage_and_no_other_setting(bit: int) -> None:
    data = bytearray(encode_png(PIXELS, {"prompt": "x", "seed": 1}))
    data[data.index(b'"seed": 1') + 8] ^= 1 << bit
    with pytest.raises(DataError, match="the checksum of its 'iTXt' differs"):
        read_settings(bytes(data))


def test_of_texts_under_one_name_only_the_first_is_unpacked() -> None:
    bomb = chunk(b"zTXt", b"parameters\0\0" + zlib.compress(b"a" * (1 << 24)))
    first = chunk(b"tEXt", b"parameters\0x\nSteps: 3, Seed: 1")
    data = png_with()
    head = data[: 8 + 25]
    started = time.process_time()
    assert read_settings(head + first + 300 * bomb + data[33:])["seed"] == 1
    assert time.process_time() - started < 2


@pytest.mark.parametrize("key", ["sanakit", "parameters"])
def test_a_text_behind_the_picture_counts_as_well(key: str) -> None:
    text = {"sanakit": '{"format": 1, "settings": {"prompt": "x"}}', "parameters": "x"}[key]
    data = png_with(workflow="{}")
    last = chunk(b"tEXt", key.encode() + b"\0" + text.encode())
    assert read_settings(data[:-12] + last + data[-12:])["prompt"] == "x"


def test_galleries_find_the_line_they_know() -> None:
    settings = {
        "prompt": "a red apple",
        "negative_prompt": "blur",
        "num_steps": 20,
        "solver": "flow-dpm-solver",
        "guidance_scale": 4.5,
        "seed": 1,
        "width": 128,
        "height": 96,
        "model": "a, b: c",
        "model_hash": "0123abcd",
        "pag_scale": 0.0,
    }
    with Image.open(io.BytesIO(encode_png(PIXELS, settings))) as picture:
        text = picture.text["parameters"]
    line = (
        "Steps: 20, Sampler: flow-dpm-solver, CFG scale: 4.5, Seed: 1, Size: 128x96, "
        'Model: "a, b: c", Model hash: 0123abcd, Version: sanakit '
    )
    assert text.startswith(f"a red apple\nNegative prompt: blur\n{line}")
    del settings["pag_scale"]
    assert parse_parameters(text) == settings


def test_what_png_text_cannot_hold_is_lost_to_galleries_only() -> None:
    settings = {"prompt": "a\ud800b\0c☃"}
    data = encode_png(PIXELS, settings)
    assert read_settings(data) == settings
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.text["parameters"].startswith("a?b c☃\n")


def test_a_text_of_the_original_program_is_read() -> None:
    text = (
        "a cat, <lora:x:1>\nsecond line: 7\nNegative prompt: bad\nworse\n"
        "Steps: 28, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 965400086, Size: 512x768, "
        'Model hash: 6ce0161689, Lora hashes: "x: 12, y: 34", Version: v1.6.0'
        "\nTemplate: {a|b}"
    )
    expected = {
        "prompt": "a cat, <lora:x:1>\nsecond line: 7",
        "negative_prompt": "bad\nworse",
        "num_steps": 28,
        "solver": "DPM++ 2M Karras",
        "guidance_scale": 7.0,
        "seed": 965400086,
        "width": 512,
        "height": 768,
        "model_hash": "6ce0161689",
    }
    assert read_settings(png_with(parameters=text)) == expected
    assert read_settings(png_with(parameters=text + " ☃")) == expected


def test_foreign_names_are_those_of_a_request() -> None:
    text = "x\nNegative prompt: y\nSteps: 28, CFG scale: 7, Seed: 9, Size: 512x768"
    request = GenerateRequest.from_json(parse_parameters(text))
    assert (request.num_steps, request.guidance_scale, request.seed) == (28, 7.0, 9)
    assert (request.width, request.height) == (512, 768)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("only words", {"prompt": "only words", "negative_prompt": ""}),
        (
            "x\nSteps: many, CFG scale: , Seed: 4.5, Size: big",
            {"prompt": "x", "negative_prompt": ""},
        ),
        ("Steps: 3", {"prompt": "", "negative_prompt": "", "num_steps": 3}),
        ("x\r\ny\r\nSteps: 3", {"prompt": "x\ny", "negative_prompt": "", "num_steps": 3}),
    ],
)
def test_a_text_is_read_as_far_as_it_can_be(text: str, expected: dict[str, Any]) -> None:
    assert parse_parameters(text) == expected


@given(texts)
def test_no_foreign_text_breaks_the_reader(text: str) -> None:
    parse_parameters(text)
    parse_parameters(f"a\nSteps: {text}, Size: {text}, Seed: {text}")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (jpeg(), "is not a PNG but JPEG"),
        (b"", "is not a PNG"),
        (png_with(), "carries no settings"),
        (png_with(workflow="{}"), r"it has text named workflow"),
        (png_with(sanakit="{"), "settings are damaged"),
        (png_with(sanakit="[]"), "settings are damaged"),
        (png_with(sanakit="{}"), "settings are damaged"),
        (png_with(sanakit='{"format": 1, "settings": 3}'), "not an object"),
        (
            png_with(sanakit='{"format": 2, "version": "9.1", "settings": {}}'),
            r"by sanakit 9\.1 in format 2.*\n.*--upgrade",
        ),
        (png_with()[:50], "cut off or damaged"),
    ],
)
def test_a_file_without_readable_settings_says_why(data: bytes, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_settings(data)


def chunk(kind: bytes, body: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + body))
    return struct.pack(">I", len(body)) + kind + body + checksum


def test_compressed_texts_are_read_but_not_without_bound() -> None:
    head, tail = png_with()[:33], png_with()[33:]
    payload = zlib.compress(b"caf\xe9\nSteps: 4")
    data = head + chunk(b"zTXt", b"parameters\0\0" + payload) + tail
    assert read_settings(data)["prompt"] == "café"
    payload = zlib.compress("☃\nSteps: 4".encode())
    data = head + chunk(b"iTXt", b"parameters\0\1\0en\0\0" + payload) + tail
    assert read_settings(data)["prompt"] == "☃"
    bomb = zlib.compress(bytes(40 << 20))
    with pytest.raises(DataError, match="too large"):
        read_settings(head + chunk(b"zTXt", b"parameters\0\0" + bomb) + tail)


def test_texts_of_others_cost_neither_time_nor_memory() -> None:
    head, tail = png_with()[:33], png_with()[33:]
    bomb = zlib.compress(bytes(15 << 20))
    bombs = b"".join(chunk(b"zTXt", b"k%d\0\0" % number + bomb) for number in range(100))
    tracemalloc.start()
    with pytest.raises(DataError, match="text named k0"):
        read_settings(head + bombs + tail)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * len(bombs)
    for many in ("a" * 300_000, " " * 300_000, 'x: "' * 75_000, 'a:"\\' * 75_000):
        started = time.process_time()
        parse_parameters(f"a\nSteps: 1,{many}")
        assert time.process_time() - started < 2


@QUICK
@given(st.binary(max_size=60), st.integers(0, 200), st.integers(0, 255))
def test_damaged_pictures_are_one_error(junk: bytes, place: int, value: int) -> None:
    data = bytearray(encode_png(PIXELS, {"prompt": "a"}))
    data[place % len(data)] = value
    for damaged in (bytes(data), bytes(data[:place]), png_with()[:33] + junk):
        with contextlib.suppress(DataError):
            read_settings(damaged)


@QUICK
@given(
    st.dictionaries(st.sampled_from([f.name for f in fields(GenerateRequest)]), values, max_size=3)
)
def test_settings_of_any_type_are_a_request_or_one_error(stored: dict[str, Any]) -> None:
    try:
        request = GenerateRequest.from_json({"prompt": "a", **stored})
    except ConfigError:
        return
    assert type(request.height) in (int, type(None))
    assert isinstance(request.prompt, str)


@pytest.mark.parametrize("bad", [{"x": float("nan")}, {"x": object()}, {1: 2}])
def test_settings_that_json_cannot_carry_are_refused(bad: dict[Any, Any]) -> None:
    with pytest.raises(ConfigError, match="settings"):
        encode_png(PIXELS, bad)


def test_a_file_on_disk_is_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode_png(PIXELS, {"prompt": "☃", "sizes": (1, 2)}))
    assert read_settings(path) == read_settings(str(path)) == {"prompt": "☃", "sizes": [1, 2]}
    assert b"\\u2603" in path.read_bytes()
    with pytest.raises(DataError, match="cannot be read"):
        read_settings(tmp_path / "b.png")
    with pytest.raises(ConfigError, match="are not uint8 H W 3"):
        encode_png(PIXELS[None], {})
