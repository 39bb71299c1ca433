"""The page as its users meet it: drawn, cancelled, reloaded, restored, compared, painted over."""

from __future__ import annotations

import base64
import io
import json
import re
import signal
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from sanakit.pipeline.png import encode_png, read_settings
from sanakit.serve.access import add_key
from served import Served, served

HOSTILE = """<img src=x onerror="document.title='run'"><script>document.title='run'</script>"""
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    "is_mobile": True,
    "has_touch": True,
}


def settings(page: Page, **values: Any) -> None:
    for name, value in values.items():
        page.locator(f"#{name}").fill(str(value))


def draw(page: Page, prompt: str = "a red apple", **values: Any) -> None:
    """Draw and wait for the picture."""
    settings(page, prompt=prompt, **{"steps": 2} | values)
    draw_as_it_stands(page)
    shows(page, prompt)


def draw_as_it_stands(page: Page) -> None:
    asked = "POST", f"{page.url}jobs"
    with page.expect_response(lambda one: (one.request.method, one.url) == asked) as answer:
        page.locator("#prompt").press("Control+Enter")
    job = answer.value.json()["id"]
    expect(page.locator(f"#stage .canvas[data-job='{job}'].done img")).to_be_visible()


def shows(page: Page, prompt: str) -> None:
    expect(page.locator("#stage .prompt")).to_have_text(prompt)


def finished(page: Page) -> None:
    expect(button(page, "Download")).to_be_visible()


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def step_of(page: Page) -> int:
    """Wait for a step and give its number."""
    words = page.locator("#stage .words")
    expect(words).to_have_text(re.compile("Step [0-9]+ of"))
    return int(words.inner_text().split()[1])


def newest(page: Page) -> dict[str, Any]:
    with urllib.request.urlopen(f"{page.url}jobs?limit=1") as answer:
        return json.load(answer)[0]


def pixels_of(page: Page, job: dict[str, Any], index: int = 0) -> np.ndarray[Any, Any]:
    with urllib.request.urlopen(page.url.rstrip("/") + job["images"][index]["url"]) as answer:
        return np.asarray(Image.open(io.BytesIO(answer.read())).convert("RGB")).astype(int)


def drop(page: Page, data: bytes, target: str = "#stage") -> None:
    carried = page.evaluate_handle(
        """text => {
          const bytes = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
          const carried = new DataTransfer();
          carried.items.add(new File([bytes], "picture.png", { type: "image/png" }));
          return carried;
        }""",
        base64.b64encode(data).decode(),
    )
    page.dispatch_event(target, "dragenter", {"dataTransfer": carried})
    page.dispatch_event(target, "drop", {"dataTransfer": carried})


def wrong(page: Page) -> list[str]:
    """What axe finds that is serious or critical."""
    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {[node['html'][:120] for node in one['nodes']]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


def test_a_prompt_becomes_a_picture_with_previews_on_the_way(
    page: Page, keep_shot: Callable[[Page, str], None]
) -> None:
    settings(page, prompt="a cat face", steps=40)
    page.locator("#prompt").press("Control+Enter")
    image = page.locator("#stage .canvas img")
    expect(image).to_have_attribute("src", re.compile("^data:image/jpeg"))
    expect(page.locator("#stage .words")).to_have_text(
        re.compile("Step [0-9]+ of 40, about .+ left")
    )
    assert float(page.locator("progress").get_attribute("value") or 0) > 0
    keep_shot(page, "drawing")
    finished(page)
    expect(image).to_have_attribute("src", re.compile("^/jobs/"))
    expect(image).to_have_js_property("naturalWidth", 256)
    expect(page.locator("#spoken")).to_have_text(re.compile("^The picture is done after"))
    expect(page.locator("#gallery li").first.get_by_role("button")).to_have_attribute(
        "aria-label", re.compile("^a cat face, seed [0-9]+$")
    )
    facts = page.locator("#stage dl").inner_text().split()
    assert {"Seed", "256", "40", "flow-dpm-solver"} <= set(facts)
    expect(page.locator("#cancel")).to_be_hidden()
    keep_shot(page, "done")


def test_the_seed_is_new_until_it_is_locked(page: Page) -> None:
    draw(page)
    first = newest(page)["seeds"][0]
    draw(page)
    second = newest(page)["seeds"][0]
    assert first != second
    page.get_by_role("button", name="Keep the seed").click()
    draw(page, "a rocket")
    assert newest(page)["seeds"] == [second]
    expect(page.locator("#seed")).to_have_value(str(second))


def test_what_is_asked_for_is_what_is_drawn(page: Page) -> None:
    page.get_by_role("radio", name="Landscape").check()
    page.locator("#solver").select_option("flow-euler")
    draw(page, "a house", negative="a tree", steps=3, guidance=2.5, count=2, seed=5)
    job = newest(page)
    asked = job["request"]
    assert (asked["prompt"], asked["negative_prompt"]) == ("a house", "a tree")
    assert (asked["width"], asked["height"], asked["num_steps"]) == (320, 192, 3)
    assert (asked["guidance_scale"], asked["solver"], job["seeds"]) == (2.5, "flow-euler", [5, 6])
    button(page, "Picture 2 of 2, seed 6").click()
    expect(page.locator("#stage dl")).to_contain_text("Seed\n6", use_inner_text=True)


def test_escape_cancels_what_is_drawn_and_the_next_is_drawn(page: Page) -> None:
    settings(page, prompt="a slow one", steps=150)
    page.locator("#prompt").press("Control+Enter")
    step_of(page)
    page.keyboard.press("Escape")
    expect(page.locator("#stage .canvas")).to_have_text("Cancelled.")
    expect(page.locator("#spoken")).to_have_text("Cancelled.")
    cancelled = newest(page)
    assert cancelled["state"] == "cancelled"
    assert cancelled["step"] < 150
    draw(page, "a rocket")


def test_a_reload_finds_the_drawing_where_it_is(page: Page) -> None:
    settings(page, prompt="a yellow star", steps=60)
    page.locator("#prompt").press("Control+Enter")
    before = step_of(page)
    page.reload()
    shows(page, "a yellow star")
    assert step_of(page) >= before
    expect(page.locator("#prompt")).to_have_value("a yellow star")
    finished(page)
    assert newest(page)["state"] == "done"


def test_a_server_that_is_killed_is_waited_for(
    open_page: Callable[..., Page], tmp_path: Path, errors: list[str]
) -> None:
    with served(tmp_path / "history") as server:
        page = open_page(str(server.client.base_url))
        draw(page, "a snowman")
        settings(page, prompt="a slow one", steps=150)
        page.locator("#prompt").press("Control+Enter")
        step_of(page)
        server.end(signal.SIGKILL)
        expect(page.locator("#connection")).to_have_text("Connection lost, trying again…")
        page.locator("#prompt").press("Control+Enter")
        expect(page.locator("#notice")).to_have_text(re.compile("^The server cannot be reached"))
    with served(tmp_path / "history", port=server.port):
        expect(page.locator("#connection")).to_have_text("")
        expect(page.locator("#gallery li").last.get_by_role("button")).to_have_attribute(
            "aria-label", re.compile("^a snowman")
        )
        draw(page, "a rocket")
        page.close()
    errors.clear()  # of requests that nobody answered


def test_a_picture_that_is_dropped_gives_its_settings_back(page: Page) -> None:
    draw(page, "a blue car", negative="red", steps=3, guidance=3.5, seed=11)
    with page.expect_download() as download:
        button(page, "Download").click()
    data = Path(download.value.path()).read_bytes()
    assert read_settings(data)["seed"] == 11
    drawn = pixels_of(page, newest(page))
    settings(page, prompt="other", negative="", steps=9, guidance=1, seed="")
    drop(page, data)
    expect(page.locator("#prompt")).to_have_value("a blue car")
    for name, value in {"negative": "red", "steps": "3", "guidance": "3.5", "seed": "11"}.items():
        expect(page.locator(f"#{name}")).to_have_value(value)
    expect(page.locator("#drop")).to_be_hidden()
    draw_as_it_stands(page)
    assert np.array_equal(pixels_of(page, newest(page)), drawn)


def test_a_picture_without_settings_becomes_what_the_next_starts_from(
    page: Page, errors: list[str]
) -> None:
    plain = io.BytesIO()
    Image.new("RGB", (256, 256), (200, 30, 30)).save(plain, "png")
    drop(page, plain.getvalue())
    expect(page.locator("#start-chosen")).to_be_visible()
    expect(page.locator("#notice")).to_contain_text("The next picture starts from it")
    errors.clear()  # the browser tells of the refusal
    draw(page, "a red apple", steps=4, strength=0.5)
    edit = newest(page)["request"]["edit"]
    assert edit["strength"] == 0.5
    assert edit["image"].startswith("sha256:")
    drawn = newest(page)
    page.get_by_role("button", name="Remove").click()
    expect(page.locator("#start-chosen")).to_be_hidden()
    draw(page, "a house")
    assert newest(page)["request"]["edit"] is None
    page.locator("#gallery button").nth(1).click()
    button(page, "Use these settings").click()
    expect(page.locator("#start-named")).to_be_visible()
    draw_as_it_stands(page)
    assert np.array_equal(pixels_of(page, newest(page)), pixels_of(page, drawn))


def test_what_the_form_has_no_field_for_is_kept_and_told(page: Page) -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    kept = {"prompt": "a house", "flow_shift": 2.5, "guidance_interval": [0.2, 1.0]}
    drop(page, encode_png(pixels, kept))
    expect(page.locator("#others .chip")).to_have_text(
        ["flow shift 2.5", "guidance interval 0.2,1"]
    )
    draw(page, "a house", steps=2)
    asked = newest(page)["request"]
    assert (asked["flow_shift"], asked["guidance_interval"]) == (2.5, [0.2, 1.0])
    button(page, "Leave out flow shift 2.5").click()
    draw(page, "a house", steps=2)
    asked = newest(page)["request"]
    assert (asked["flow_shift"], asked["guidance_interval"]) == (None, [0.2, 1.0])


def test_what_a_request_left_open_is_the_models_own(page: Page, server: Served) -> None:
    job = server.draw("a house", count=2, seed=4)["id"]
    server.client.post(f"/jobs/{job}/cancel")
    settings(page, steps=3, guidance=1, negative="a tree")
    card = page.locator("#gallery [title='a house'][data-state=cancelled]").first
    card.click()
    button(page, "Use these settings").click()
    for name, value in {"steps": "20", "guidance": "5", "negative": "", "count": "1"}.items():
        expect(page.locator(f"#{name}")).to_have_value(value)
    expect(page.locator("#seed")).to_have_value("4")


def test_text_of_others_is_shown_as_text(page: Page) -> None:
    draw(page, HOSTILE, negative=HOSTILE, seed=1)
    expect(page.locator("#stage dl")).to_contain_text(HOSTILE)
    pixels = np.zeros((64, 64, 3), np.uint8)
    drop(page, encode_png(pixels, {"prompt": HOSTILE, "solver": HOSTILE, "seed": 2}))
    expect(page.locator("#notice")).to_contain_text(f"does not have: {HOSTILE}")
    expect(page.locator("#solver option:checked")).to_have_text("flow-dpm-solver")
    draw(page, HOSTILE + "!", seed=3, negative="")
    button(page, "Compare").click()
    page.locator("#gallery button").nth(1).click()
    expect(page.locator("#stage table")).to_contain_text(HOSTILE)
    page.reload()
    shows(page, HOSTILE + "!")
    assert page.locator("img[src=x], main script").count() == 0
    assert "run" not in page.title()


def test_two_pictures_are_compared_under_a_slider(
    page: Page, keep_shot: Callable[[Page, str], None]
) -> None:
    draw(page, "a cat face", seed=1, steps=8)
    draw(page, "a cat face", seed=2, steps=8)
    button(page, "Compare").click()
    page.locator("#gallery button").nth(1).click()
    slider = page.get_by_role("slider", name="How much of the left picture is shown")
    expect(slider).to_be_focused()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert page.locator(".compare .over").evaluate("e => getComputedStyle(e).clipPath") == (
        "inset(0px 0px 0px 60%)"
    )
    rows = page.locator("#stage table tr").all_inner_texts()
    assert [row.split() for row in rows] == [["Setting", "Left", "Right"], ["Seed", "2", "1"]]
    assert wrong(page) == []
    keep_shot(page, "compare")
    button(page, "Stop comparing").click()
    finished(page)


def test_what_a_painted_mask_leaves_out_stays_bit_for_bit(
    page: Page, keep_shot: Callable[[Page, str], None]
) -> None:
    draw(page, "a smiling face", seed=1, steps=10)
    before = pixels_of(page, newest(page))
    button(page, "Paint over").click()
    canvas = page.locator("#painter-canvas")
    expect(canvas).to_be_visible()
    box = canvas.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.2 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.25 * box["height"], steps=6)
    page.mouse.up()
    assert wrong(page) == []
    keep_shot(page, "painting")
    button(page, "Use the mask").click()
    expect(page.locator("#start-mask")).to_be_visible()
    expect(page.locator("#strength")).to_have_value("1")
    draw(page, "a face with sunglasses", seed=3, steps=10)
    changed = np.abs(pixels_of(page, newest(page)) - before).max(axis=2)
    assert changed[40:60, 60:200].max() > 0
    assert changed[128:].max() == 0


def test_everything_goes_by_keyboard(page: Page) -> None:
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.type("a red apple")
    order = []
    for _ in range(12):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.name"))
    assert order[:3] == ["negative", "start-file", "generate"]
    assert order[4:] == ["size", "width", "height", "steps", "guidance", "count", "seed", "lock"]
    settings(page, steps=2)
    draw_as_it_stands(page)
    draw(page, "a rocket")
    page.locator("#gallery button").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    shows(page, "a red apple")
    button(page, "Paint over").focus()
    page.keyboard.press("Enter")
    canvas = page.locator("#painter-canvas")
    expect(canvas).to_be_focused()
    for key in ("Space", "ArrowRight", "Shift+ArrowDown", "Space"):
        page.keyboard.press(key)
    pixels = "e.getContext('2d').getImageData(0, 0, 256, 256).data"
    painted = f"e => {pixels}.filter((value, at) => at % 4 === 3 && value).length"
    assert canvas.evaluate(painted) > 1000
    page.keyboard.press("Escape")
    expect(page.locator("#painter")).to_be_hidden()
    expect(page.locator("#start-mask")).to_be_hidden()


def test_a_phone_shows_all_of_it_without_scrolling_sideways(
    open_page: Callable[..., Page], server: Served, keep_shot: Callable[[Page, str], None]
) -> None:
    page = open_page(str(server.client.base_url), **PHONE)
    expect(page.locator("#settings")).not_to_have_attribute("open", "")
    settings(page, prompt="a slice of pizza")
    page.locator("#generate").tap()
    shows(page, "a slice of pizza")
    finished(page)
    keep_shot(page, "phone")
    assert wrong(page) == []
    page.locator("#settings summary").tap()
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["viewport"]["width"]
    small = page.evaluate(
        """[...document.querySelectorAll("button, select, .button, textarea, .preset")]
          .filter((one) => one.checkVisibility() && one.getBoundingClientRect().height < 36)
          .map((one) => one.id || one.textContent)"""
    )
    assert small == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_stands_in_the_way_of_who_cannot_see_well(
    scheme: str,
    open_page: Callable[..., Page],
    server: Served,
    keep_shot: Callable[[Page, str], None],
) -> None:
    page = open_page(str(server.client.base_url), color_scheme=scheme, reduced_motion="reduce")
    assert wrong(page) == []
    settings(page, prompt="a snowman", steps=150, count=2)
    page.locator("#prompt").press("Control+Enter")
    expect(page.locator("#stage .words")).to_have_text(re.compile("^Picture 1 of 2, step"))
    assert page.locator("#stage .canvas").evaluate(
        "e => getComputedStyle(e, '::after').animationName"
    ) in ("none", "")
    assert wrong(page) == []
    page.keyboard.press("Escape")
    expect(page.locator("#stage .canvas")).to_have_text("Cancelled.")
    draw(page, "a snowman", count=1, steps=20)
    assert wrong(page) == []
    keep_shot(page, scheme)


def test_what_is_wrong_is_told_and_shown(page: Page, errors: list[str]) -> None:
    page.locator("#settings summary").click()
    settings_open = page.locator("#settings")
    expect(settings_open).not_to_have_attribute("open", "")
    page.evaluate("document.querySelector('#width').value = 255")
    page.locator("#prompt").press("Control+Enter")
    expect(settings_open).to_have_attribute("open", "")
    page.locator("#width").fill("256")
    page.evaluate("document.querySelector('#prompt').removeAttribute('maxlength')")
    settings(page, prompt="a" * 2_000_000)
    page.locator("#prompt").press("Control+Enter")
    expect(page.locator("#notice")).to_contain_text("prompt")
    expect(page.locator("#notice")).to_have_attribute("data-kind", "error")
    errors.clear()  # the browser tells of the refusal


def test_a_picture_is_deleted(page: Page) -> None:
    draw(page, "a rocket to forget")
    job = newest(page)
    asked = []
    page.once("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
    button(page, "Delete").click()
    assert asked == ["Delete this picture for good?"]
    assert newest(page)["id"] == job["id"]
    page.once("dialog", lambda dialog: dialog.accept())
    button(page, "Delete").click()
    expect(page.locator("#notice")).to_have_text("Deleted.")
    expect(page.locator(f"#gallery [title='{job['request']['prompt']}']")).to_have_count(0)
    assert newest(page)["id"] != job["id"]


def test_a_key_is_asked_for_where_the_server_asks_and_kept_for_the_tab(
    open_page: Callable[..., Page], tmp_path: Path, errors: list[str]
) -> None:
    secret = add_key(tmp_path / "keys.json", "ann")
    with served(tmp_path / "history", "--keys", str(tmp_path / "keys.json")) as server:
        page = open_page(str(server.client.base_url), model=None)
        expect(page.locator("#key")).to_be_visible()
        assert wrong(page) == []
        page.locator("#key-value").fill("sanakit-none-of-the-keys")
        page.keyboard.press("Enter")
        expect(page.locator("#key-error")).to_contain_text("not known")
        page.locator("#key-value").fill(secret)
        button(page, "Use the key").click()
        expect(page.locator("#model")).to_have_text("glyph")
        errors.clear()  # the browser tells of the refusals
        draw(page, "a red apple")
        image = page.locator("#stage .canvas img")
        expect(image).to_have_attribute("src", re.compile("^blob:"))
        page.reload()
        finished(page)
        expect(image).to_have_js_property("naturalWidth", 256)
        page.close()
