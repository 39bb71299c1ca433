from __future__ import annotations

import io
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from served import Served, served

LONG = {"num_steps": 150, "seed": 1}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("kept") / "history", "--at-once", "3") as one:
        yield one


def pixels(server: Served, job: dict) -> np.ndarray:
    data = server.client.get(job["images"][0]["url"]).content
    return np.asarray(Image.open(io.BytesIO(data)))


def test_drawings_that_advance_together_are_bit_for_bit_what_each_is_alone(server: Served) -> None:
    import torch

    from sanakit.pipeline.pipeline import Pipeline
    from sanakit.pipeline.request import GenerateRequest

    asked = [
        {"prompt": "a red apple", "seed": 1, "num_steps": 9},
        {"prompt": "two blue cars", "seed": 2, "num_steps": 4, "solver": "flow-euler"},
        {"prompt": "a tree", "seed": 3, "num_steps": 6, "negative_prompt": "green"},
        {"prompt": "a tree", "seed": 3, "num_steps": 6, "width": 128, "height": 192},
    ]
    gone = server.draw(**LONG)
    jobs = [server.draw(**one) for one in asked]
    server.drawing(gone["id"])
    server.client.post(f"/jobs/{gone['id']}/cancel")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pipeline = Pipeline.load("glyph")
    try:
        for job, one in zip(jobs, asked, strict=True):
            alone = pipeline.generate(GenerateRequest(**one)).pictures[0].pixels
            assert np.array_equal(pixels(server, server.over(job["id"])), alone)
    finally:
        torch.set_num_threads(threads)


def test_what_is_drawn_stops_within_a_step_of_being_cancelled(server: Served) -> None:
    job = server.draw(**LONG)
    server.drawing(job["id"])
    stopped = server.client.post(f"/jobs/{job['id']}/cancel").json()
    assert (stopped["state"], stopped["images"]) == ("cancelled", [])
    after = server.draw(num_steps=2, seed=1)
    assert server.over(after["id"])["state"] == "done"
    assert server.job(job["id"])["step"] <= stopped["step"] + 1
    metrics = server.client.get("/metrics").text
    assert "sanakit_running 0.0" in metrics


def test_health_is_answered_all_through_a_drawing_as_the_loop_never_computes(
    server: Served,
) -> None:
    job = server.draw(num_steps=40, seed=1)
    answers = 0
    while server.job(job["id"])["finished_at"] is None:
        assert server.client.get("/healthz").json() == {"status": "ok"}
        answers += 1
    assert answers > 5  # of a loop that waits for the drawing there would be one or two


def test_a_picture_gives_its_request_back_and_draws_itself_again(server: Served) -> None:
    first = server.over(server.draw(num_steps=3, negative_prompt="blue")["id"])
    png = server.client.get(first["images"][0]["url"]).content
    found = server.client.post("/settings", content=png).json()
    assert found["seed"] == first["seeds"][0]
    again = server.over(server.client.post("/jobs", json=found).json()["id"])
    assert np.array_equal(pixels(server, first), pixels(server, again))


def test_an_edit_begins_with_the_picture_that_came_along_and_tells_no_path(server: Served) -> None:
    first = server.over(server.draw(num_steps=3, seed=5)["id"])
    png = server.client.get(first["images"][0]["url"]).content
    import base64

    image = base64.b64encode(png).decode()
    job = server.draw("a pear", seed=5, num_steps=4, edit={"image": image, "strength": 0.5})
    done = server.over(job["id"])
    assert done["state"] == "done", done
    assert done["request"]["edit"]["image"].startswith("sha256:")
    drawn = server.client.get(done["images"][0]["url"]).content
    assert str(server.log.parent).encode() not in drawn
    assert server.client.post("/settings", content=drawn).json()["edit"] == done["request"]["edit"]


def test_a_killed_worker_fails_what_it_drew_and_the_next_request_is_drawn(server: Served) -> None:
    lost = server.draw(**LONG)
    server.drawing(lost["id"])
    server.worker.kill()
    failed = server.over(lost["id"])
    assert (failed["state"], failed["code"]) == ("failed", "worker_lost")
    assert "SIGKILL" in failed["error"]
    assert server.over(server.draw(num_steps=2, seed=1)["id"])["state"] == "done"


@pytest.mark.slow
def test_a_worker_that_stands_still_is_ended_and_the_next_request_is_drawn(tmp_path: Path) -> None:
    with served(tmp_path / "history", "--stuck-after", "10") as server:
        stuck = server.draw(**LONG)
        server.drawing(stuck["id"])
        server.worker.suspend()
        failed = server.over(stuck["id"])
        assert (failed["state"], failed["code"]) == ("failed", "worker_lost")
        assert "no progress for 10 s" in failed["error"]
        assert server.over(server.draw(num_steps=2, seed=1)["id"])["state"] == "done"


@pytest.mark.slow
def test_a_killed_server_loses_no_picture_and_the_next_one_draws_what_waited(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "history"
    with served(folder, "--at-once", "1") as first:
        done = first.over(first.draw(num_steps=2, seed=1)["id"])
        png = first.client.get(done["images"][0]["url"]).content
        drawn = first.draw(**LONG)
        waiting = first.draw(num_steps=2, seed=2)
        first.drawing(drawn["id"])
        worker = first.worker
        first.end(signal.SIGKILL)
        worker.wait(30)  # nobody is left to draw for
        assert not psutil.pid_exists(worker.pid)
    with served(folder, "--at-once", "1") as second:
        assert second.client.get(done["images"][0]["url"]).content == png
        failed = second.job(drawn["id"])
        assert (failed["state"], failed["code"]) == ("failed", "server_lost")
        assert second.over(waiting["id"])["state"] == "done"
        assert [job["id"] for job in second.client.get("/jobs").json()] == [
            waiting["id"],
            drawn["id"],
            done["id"],
        ]


def test_a_model_that_is_not_there_ends_the_server_with_its_name(tmp_path: Path) -> None:
    one = Served(tmp_path / "history", "--model", str(tmp_path / "nowhere"))
    assert one.process.wait(60) == 2
    assert "nowhere" in one.log.read_text()


@pytest.mark.slow
def test_a_server_told_to_end_finishes_what_is_drawn_and_keeps_the_rest(tmp_path: Path) -> None:
    folder = tmp_path / "history"
    with served(folder, "--at-once", "1") as first:
        drawn = first.draw(num_steps=30, seed=1)
        waiting = first.draw(num_steps=2, seed=2)
        first.drawing(drawn["id"])
        first.process.send_signal(signal.SIGTERM)
        first.until(lambda: first.client.get("/readyz").status_code == 503)
        refused = first.client.post("/jobs", json={"prompt": ""})
        assert refused.status_code == 503
        assert first.process.wait(60) == 0
    with served(folder) as second:
        assert second.job(drawn["id"])["state"] == "done"
        assert second.over(waiting["id"])["state"] == "done"


def test_any_free_port_is_told_of_and_a_taken_one_is_refused_before_a_model_is_loaded(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-m", "sanakit", "serve", "--history"]
    free = subprocess.Popen(
        [*command, str(tmp_path / "a"), "--port", "0"], stderr=subprocess.PIPE, text=True
    )
    try:
        assert free.stderr is not None
        url = free.stderr.readline().strip()
        assert httpx.get(f"{url}/healthz", timeout=30).status_code == 200
        port = url.rpartition(":")[2]
        taken = subprocess.run(
            [*command, str(tmp_path / "b"), "--port", port],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (taken.returncode, f":{port} cannot be listened on" in taken.stderr) == (2, True)
    finally:
        free.kill()
        free.wait()
        free.stderr.close()
