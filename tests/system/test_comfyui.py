"""The ComfyUI node pack: what it declares, and, where a ComfyUI is given, what it draws there.

`SANAKIT_COMFYUI` is a checkout of ComfyUI, `SANAKIT_COMFYUI_PYTHON` a Python that runs it and this
package; without them only the declarations are tested.
"""

from __future__ import annotations

import inspect
import io
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integrations.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, nodes
from PIL import Image

from command_line import sanakit
from sanakit.cli.options import SOLVERS

PACK = Path(nodes.__file__).parent
COMFYUI, PYTHON = (os.environ.get(f"SANAKIT_COMFYUI{end}", "") for end in ("", "_PYTHON"))
real = pytest.mark.skipif(not COMFYUI, reason="SANAKIT_COMFYUI names no ComfyUI")
TYPES = {"MODEL", "CLIP", "VAE", "CONDITIONING", "LATENT", "IMAGE"}
WATCHER = """
import asyncio, sys, aiohttp
async def watch(url):
    async with aiohttp.ClientSession() as session, session.ws_connect(url) as stream:
        print("watching", flush=True)
        async for message in stream:
            if message.type == aiohttp.WSMsgType.BINARY:
                print("preview", len(message.data), message.data[8:10].hex(), flush=True)
asyncio.run(watch(sys.argv[1]))
"""


def workflow() -> dict[str, Any]:
    return json.loads((PACK / "workflow.json").read_text())


@pytest.mark.parametrize("name", NODE_CLASS_MAPPINGS)
def test_a_node_takes_what_it_declares(name: str) -> None:
    node = NODE_CLASS_MAPPINGS[name]
    declared = node.INPUT_TYPES()["required"]
    method = getattr(node, node.FUNCTION)
    assert list(inspect.signature(method).parameters)[1:] == list(declared)
    assert set(node.RETURN_TYPES) <= TYPES
    assert name in NODE_DISPLAY_NAME_MAPPINGS


def test_the_sampler_offers_all_solvers() -> None:
    assert nodes.SOLVERS[1:] == SOLVERS


def test_the_workflow_names_nodes_and_inputs_that_are_there() -> None:
    steps = workflow()
    for step in steps.values():
        node = NODE_CLASS_MAPPINGS.get(step["class_type"])
        if node is None:
            assert step["class_type"] == "SaveImage"
            continue
        declared = node.INPUT_TYPES()["required"]
        assert set(step["inputs"]) == set(declared)
        for key, value in step["inputs"].items():
            if isinstance(value, list):
                giver = NODE_CLASS_MAPPINGS[steps[value[0]]["class_type"]]
                assert giver.RETURN_TYPES[value[1]] == declared[key][0]


class Comfy:
    """A ComfyUI that runs, by its HTTP interface."""

    def __init__(self, port: int) -> None:
        self.address = f"127.0.0.1:{port}"

    def ask(self, path: str, body: Any = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://{self.address}{path}", data, headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bytes(answer.read())

    def start(self, steps: dict[str, Any]) -> str:
        body = {"prompt": steps, "client_id": "test"}
        return str(json.loads(self.ask("/prompt", body))["prompt_id"])

    def finished(self, job: str) -> dict[str, Any]:
        for _ in range(600):
            if found := json.loads(self.ask(f"/history/{job}")):
                return dict(found[job])
            time.sleep(0.2)
        raise TimeoutError(job)

    def pictures(self, job: str) -> list[np.ndarray[Any, Any]]:
        done = self.finished(job)
        assert done["status"]["status_str"] == "success", done["status"]
        named = [one for node in done["outputs"].values() for one in node["images"]]
        files = [self.ask(f"/view?filename={one['filename']}&type={one['type']}") for one in named]
        return [np.asarray(Image.open(io.BytesIO(one)).convert("RGB")).astype(int) for one in files]


@pytest.fixture(scope="module")
def comfy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comfy]:
    folder = tmp_path_factory.mktemp("comfyui")
    (folder / "custom_nodes").mkdir()
    shutil.copytree(PACK, folder / "custom_nodes" / "sanakit")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    call = [PYTHON, str(Path(COMFYUI, "main.py")), "--cpu", "--port", str(port)]
    call += ["--preview-method", "latent2rgb", "--base-directory", str(folder)]
    call += ["--disable-auto-launch", "--database-url", "sqlite:///:memory:"]
    with open(folder / "log", "w") as log, subprocess.Popen(call, stdout=log, stderr=log) as run:
        running = Comfy(port)
        for _ in range(300):
            try:
                running.ask("/system_stats")
                break
            except OSError:
                assert run.poll() is None, (folder / "log").read_text()
                time.sleep(0.5)
        yield running
        run.terminate()


@real
def test_the_workflow_draws_the_picture_of_the_command(comfy: Comfy, tmp_path: Path) -> None:
    call = [PYTHON, "-c", WATCHER, f"ws://{comfy.address}/ws?clientId=test"]
    with subprocess.Popen(call, stdout=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdout is not None
        assert watcher.stdout.readline() == "watching\n"
        [drawn] = comfy.pictures(comfy.start(workflow()))
        watcher.terminate()
        previews = watcher.stdout.read().splitlines()
    sanakit("generate", "a red apple", "--seed", 1, "-o", tmp_path / "own.png", "-q")
    own = np.asarray(Image.open(tmp_path / "own.png")).astype(int)
    assert np.abs(drawn - own).max() <= 1  # ComfyUI cuts where we round
    assert len(previews) >= 5
    assert all(line.startswith("preview") and line.endswith("ffd8") for line in previews)


@real
def test_nodes_of_comfyui_take_the_parts(comfy: Comfy) -> None:
    steps = workflow()
    text = {"clip": ["1", 1], "text": "a red apple"}
    steps["2"] = {"class_type": "CLIPTextEncode", "inputs": text}
    steps["4"]["inputs"]["batch_size"] = 2
    sampled = {key: steps["5"]["inputs"][key] for key in steps["5"]["inputs"] if key != "solver"}
    sampled |= {"sampler_name": "dpmpp_2m", "scheduler": "simple", "steps": 6}
    steps["5"] = {"class_type": "KSampler", "inputs": sampled}
    decoded = {"samples": ["5", 0], "vae": ["1", 2]}
    steps["6"] = {"class_type": "VAEDecode", "inputs": decoded}
    steps["8"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["6", 0], "vae": ["1", 2]}}
    steps["6b"] = {"class_type": "VAEDecode", "inputs": {"samples": ["8", 0], "vae": ["1", 2]}}
    steps["9"] = {
        "class_type": "SaveImage",
        "inputs": {"images": ["6b", 0], "filename_prefix": "b"},
    }
    first, second, *again = comfy.pictures(comfy.start(steps))
    assert np.abs(first - second).mean() > 5
    assert np.abs(first - again[0]).mean() < 12  # through the autoencoder and back
    red, green, _ = first[128, 128]
    assert red > green + 50


@real
def test_an_interrupt_ends_a_drawing_between_two_steps(comfy: Comfy) -> None:
    steps = workflow()
    steps["5"]["inputs"]["steps"] = 1000
    job = comfy.start(steps)
    while not json.loads(comfy.ask("/queue"))["queue_running"]:
        time.sleep(0.1)
    time.sleep(3)
    asked = time.monotonic()
    comfy.ask("/interrupt", {})
    done = comfy.finished(job)
    assert time.monotonic() - asked < 20
    assert [name for name, _ in done["status"]["messages"]][-1] == "execution_interrupted"
    assert comfy.pictures(comfy.start(workflow()))
