"""What Open WebUI and SillyTavern send, in their order and with all that they leave in it."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tiny_server import MODEL, SOLVERS, ColorWorker, Server, b64, color_of, listening, png, until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with listening(tmp_path_factory.mktemp("serve")) as one:
        yield one


@pytest.fixture
def ask(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{server.url}/sdapi/v1/", timeout=20) as one:
        yield one


def told(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()


def image(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_open_webui_draws(ask: httpx.Client, server: Server) -> None:
    # Without a password it sends an empty header.
    none = {"authorization": ""}
    told(ask.get("options", headers=none))
    (model,) = told(ask.get("sd-models", headers=none))
    assert (model["title"], model["model_name"]) == (MODEL, MODEL)
    options = told(ask.get("options", headers=none))
    told(ask.post("options", json={**options, "sd_model_checkpoint": MODEL}, headers=none))
    body = {"prompt": "a red apple", "batch_size": 2, "width": 64, "height": 64, "steps": 3}
    drawn = told(ask.post("txt2img", json={**body, "negative_prompt": "blur"}, headers=none))
    assert len(drawn["images"]) == 2
    info = json.loads(drawn["info"])
    for text, seed in zip(drawn["images"], info["all_seeds"], strict=True):
        np.testing.assert_array_equal(np.asarray(image(text)), color_of(seed))
    assert (info["steps"], info["negative_prompt"]) == (3, "blur")


def test_open_webui_draws_and_edits_in_the_shape_of_openai(server: Server) -> None:
    body = {"model": MODEL, "prompt": "x", "n": 1, "size": "64x64", "response_format": "b64_json"}
    with httpx.Client(base_url=f"{server.url}/v1/", headers={"Authorization": "Bearer"}) as ask:
        drawn = ask.post("images/generations?api-version=2025-04-01", json=body)
        drawn.raise_for_status()
        form = {key: str(value) for key, value in body.items()}
        for name in ("image", "image[]"):
            edited = ask.post(
                "images/edits",
                data=form,
                files=[(name, ("0c1e.png", png(), "image/png"))],
            )
            assert "b64_json" in told(edited)["data"][0]


def silly_tavern(url: str) -> dict[str, Any]:
    """What its page sends through its own server, which leaves its address and password in."""
    return {
        "url": url,
        "auth": "",
        "prompt": "a castle, best quality",
        "negative_prompt": "lowres",
        "sampler_name": SOLVERS[0],
        "scheduler": "automatic",
        "steps": 4,
        "cfg_scale": 5,
        "width": 64,
        "height": 64,
        "restore_faces": False,
        "enable_hr": False,
        "hr_upscaler": "Latent",
        "hr_scale": 1.5,
        "hr_additional_modules": [],
        "denoising_strength": 0.7,
        "hr_second_pass_steps": 0,
        "seed": -1,
        "override_settings": {"CLIP_stop_at_last_layers": 1},
        "override_settings_restore_afterwards": True,
        "clip_skip": 1,
        "save_images": True,
        "send_images": True,
        "do_not_save_grid": False,
        "do_not_save_samples": False,
    }


def test_silly_tavern_connects_and_draws(ask: httpx.Client, server: Server) -> None:
    ask.headers["Authorization"] = "Basic"
    assert told(ask.get("options"))["sd_model_checkpoint"] == MODEL
    assert [one["name"] for one in told(ask.get("samplers"))] == SOLVERS
    assert [one["name"] for one in told(ask.get("schedulers"))] == ["automatic"]
    assert [one["title"] for one in told(ask.get("sd-models"))] == [MODEL]
    assert [one["name"] for one in told(ask.get("upscalers"))] == ["None"]
    for name in ("latent-upscale-modes", "sd-vae", "sd-modules"):
        assert told(ask.get(name)) == []
    told(ask.post("options", json={"sd_model_checkpoint": MODEL}))
    now = told(ask.get("progress"))
    assert (now["progress"], now["state"]["job_count"]) == (0.0, 0)
    assert "forge_preset" not in told(ask.get("options"))
    drawn = told(ask.post("txt2img", json=silly_tavern(server.url)))
    assert image(drawn["images"][0]).format == "PNG"
    sent = server.worker.requests[-1]["request"]
    assert (sent["solver"], sent["guidance_scale"], sent["num_steps"]) == (SOLVERS[0], 5.0, 4)
    assert "auth" not in drawn["parameters"]


def test_silly_tavern_stops_a_drawing_that_its_user_left(tmp_path: Path) -> None:
    with listening(tmp_path, ColorWorker(seconds=0.1, steps=100)) as server:
        body = silly_tavern(server.url) | {"steps": 100}
        with pytest.raises(httpx.ReadTimeout):
            server.http.post(f"{server.url}/sdapi/v1/txt2img", json=body, timeout=0.6)
        assert told(server.http.post(f"{server.url}/sdapi/v1/interrupt")) == {}
        until(lambda: not server.service._running, 3)


def test_progress_tells_of_the_drawing_that_runs(tmp_path: Path) -> None:
    with listening(tmp_path, ColorWorker(seconds=0.05, steps=40)) as server:
        server.http.post(f"{server.url}/jobs", json={"prompt": "x", "partial_images": 3})
        with httpx.Client(base_url=f"{server.url}/sdapi/v1/") as ask:
            until(lambda: told(ask.get("progress"))["current_image"] is not None)
            now = told(ask.get("progress"))
            assert 0 < now["progress"] < 1
            assert (now["state"]["job_count"], now["state"]["sampling_steps"]) == (1, 40)
            assert image(now["current_image"]).format == "JPEG"
            assert told(ask.get("progress?skip_current_image=true"))["current_image"] is None
            told(ask.post("skip"))
            until(lambda: told(ask.get("progress"))["state"]["job_count"] == 0)


def test_a_picture_is_drawn_anew_within_its_mask(ask: httpx.Client, server: Server) -> None:
    half = Image.new("L", (64, 64), 0)
    half.paste(255, (0, 0, 32, 64))
    out = io.BytesIO()
    half.save(out, "png")
    mask = out.getvalue()
    body = {"prompt": "x", "init_images": [f"data:image/png;base64,{b64(png())}"]}
    told(ask.post("img2img", json={**body, "denoising_strength": 0.4, "mask": b64(mask)}))
    plain = server.worker.requests[-1]["request"]["edit"]
    told(ask.post("img2img", json={**body, "mask": b64(mask), "inpainting_mask_invert": 1}))
    turned = server.worker.requests[-1]["request"]["edit"]
    assert (plain["strength"], turned["strength"]) == (0.4, 0.75)
    inputs = server.service.history.inputs
    masks = [
        np.asarray(Image.open(inputs / one["mask"].removeprefix("sha256:")).convert("L"))
        for one in (plain, turned)
    ]
    np.testing.assert_array_equal(masks[0].astype(int) + masks[1], 255)


def test_a_pictures_settings_come_back(ask: httpx.Client) -> None:
    body = {"prompt": "a castle", "seed": 12, "steps": 3}
    drawn = told(ask.post("txt2img", json=body))
    found = told(ask.post("png-info", json={"image": drawn["images"][0]}))
    assert found["info"] == json.loads(drawn["info"])["infotexts"][0]
    assert found["info"].startswith("a castle\nSteps: 3")
    assert (found["parameters"]["Seed"], found["parameters"]["Prompt"]) == ("12", "a castle")
    empty = told(ask.post("png-info", json={"image": b64(png())}))
    assert empty == {"info": "", "items": {}, "parameters": {}}


def test_lora_named_in_a_prompt_are_worn(ask: httpx.Client, server: Server) -> None:
    told(ask.post("txt2img", json={"prompt": "a cat <lora:stripes:1>"}))
    sent = server.worker.requests[-1]
    assert (sent["request"]["prompt"], list(sent["lora"])) == ("a cat", ["stripes"])
    for prompt in ("x <lora:stripes:0.3>", "x <lora:../../etc:1>", "x <lora:none>"):
        assert ask.post("txt2img", json={"prompt": prompt}).status_code == 400


def test_memory_is_told(ask: httpx.Client) -> None:
    ram = told(ask.get("memory"))["ram"]
    assert ram["total"] == ram["free"] + ram["used"]


@pytest.mark.parametrize(
    "more",
    [
        {"seed": None, "batch_size": None, "styles": [], "eta": 0, "tiling": False},
        {"sampler_index": "Euler", "scheduler": "Automatic", "alwayson_scripts": {}},
        {"subseed": 5, "subseed_strength": 0.0, "s_noise": 1, "script_args": [1], "infotext": ""},
        {"override_settings": {"sd_model_checkpoint": MODEL, "sd_vae": "Automatic"}},
    ],
)
def test_settings_that_change_nothing_are_taken(ask: httpx.Client, more: dict[str, Any]) -> None:
    told(ask.post("txt2img", json={"prompt": "x", **more}))


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({"enable_hr": True}, 400),
        ({"restore_faces": True}, 400),
        ({"tiling": True}, 400),
        ({"subseed_strength": 0.2}, 400),
        ({"styles": ["anime"]}, 400),
        ({"clip_skip": 2}, 400),
        ({"scheduler": "Karras"}, 400),
        ({"script_name": "x/y plot"}, 400),
        ({"alwayson_scripts": {"ADetailer": {"args": []}}}, 400),
        ({"refiner_checkpoint": "other"}, 400),
        ({"override_settings": {"CLIP_stop_at_last_layers": 2}}, 400),
        ({"override_settings": {"sd_model_checkpoint": "other"}}, 404),
        ({"override_settings": {"new_option": 1}}, 400),
        ({"sampler_name": "Euler a"}, 404),
        ({"unheard_of": 1}, 400),
        ({"steps": 10_000}, 400),
        ({"batch_size": 4, "n_iter": 4}, 400),
    ],
)
def test_settings_that_would_change_a_picture_are_refused(
    ask: httpx.Client, more: dict[str, Any], status: int
) -> None:
    answer = ask.post("txt2img", json={"prompt": "x", **more})
    assert answer.status_code == status
    assert set(answer.json()) == {"error", "detail", "body", "errors"}
    assert len(answer.json()["detail"]) > 15


def test_options_stay_as_they_are(ask: httpx.Client) -> None:
    for wanted in ({"sd_model_checkpoint": "other"}, {"samples_format": "jpg"}, {"x": 1}):
        assert ask.post("options", json=wanted).status_code in (400, 404)
