"""`sanakit doctor` tells what a processor is, and goes red where it computes wrong.

`python tests/system/test_cli_doctor.py` writes the known latent and picture anew, after the
embedded model has changed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from command_line import sanakit
from sanakit import SanaPipeline
from sanakit.cli import doctor
from sanakit.errors import NumericsError
from sanakit.nn import linear_attention, processor
from sanakit.pipeline.pixels import to_pixels

ASSETS = Path(doctor.__file__).parents[1] / "assets" / "known"


@pytest.fixture(autouse=True)
def on_the_processor_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sanakit.pipeline.placement.accelerator", lambda: torch.device("cpu"))
    monkeypatch.setattr("sanakit.bench.record.SIDE", 64)
    monkeypatch.delenv("SANAKIT_DEVICE", raising=False)


def test_it_tells_what_the_machine_is_and_that_it_computes_right() -> None:
    told = json.loads(sanakit("doctor", "--json")[0])
    assert {check["what"] for check in told["checks"]} == {"latent", "picture"}
    for check in told["checks"]:
        assert check["right"]
        assert check["difference"] < doctor.ALLOWED[check["what"]] / 2
    assert set(told["gflops"]) == {"float32", "bfloat16", "int8"}
    assert told["gflops"]["float32"] > 0
    assert told["hardware_threads"] >= told["cores"] >= 1
    said = sanakit("doctor")[0]
    assert "known latent right" in said
    assert "known picture right" in said


def test_a_kernel_that_computes_wrong_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    exact = linear_attention.relu_linear_attention

    def last_head_lost(*given: torch.Tensor, **named: float) -> torch.Tensor:
        found = exact(*given, **named)
        found[:, -1] = 0
        return found

    monkeypatch.setattr(linear_attention, "relu_linear_attention", last_head_lost)
    with pytest.raises(NumericsError, match="latent that is known is not what cpu computes"):
        doctor.doctor("cpu")
    assert "known latent WRONG" in capsys.readouterr().out


def test_a_convolution_that_computes_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = torch.nn.Conv2d.forward

    def one_column_off(self: torch.nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        found = exact(self, x)
        return found.roll(1, dims=-1) if self.kernel_size == (3, 3) else found

    monkeypatch.setattr(torch.nn.Conv2d, "forward", one_column_off)
    with pytest.raises(NumericsError):
        doctor.doctor("cpu", json_=True)


def test_what_is_no_number_is_not_right() -> None:
    assert not doctor.Check(device="cpu", what="latent", difference=float("nan")).right


def test_a_smaller_processor_computes_the_same_and_says_what_limits_it() -> None:
    limits = {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    }
    done = subprocess.run(
        [sys.executable, "-m", "sanakit", "doctor", "--json", "--device", "cpu"],
        env={**os.environ, **limits},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["limited_by"] == limits
    if told["architecture"] == "x86_64":
        assert not {"AVX-512", "VNNI", "AVX-512 bf16"} & {*told["units"]}
        assert told["bfloat16_weights_compute_in"] == "float32"
    assert all(check["right"] for check in told["checks"])


def test_facts_are_read_by_a_person() -> None:
    found = {
        **doctor.facts(),
        "units": ("AVX2",),
        "hardware_threads": 8,
        "cores": 4,
        "quota": 1.5,
        "limited_by": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
        "gflops": {"float32": 112.4, "int8": None},
        "waiting_threads_sleep": False,
        "bfloat16_weights_compute_in": "float32",
    }
    said = dict(doctor.described(found))
    assert said["units"] == "AVX2, limited by ONEDNN_MAX_CPU_ISA=AVX2"
    assert said["may use"] == (
        "8 hardware threads on 4 cores, of which its group grants the time of 1.5"
    )
    assert said["GFLOP/s"] == "float32 112, int8 unknown (square products)"
    assert said["weights"] == "of bfloat16 compute in float32, a layer at a time"
    assert "OMP_WAIT_POLICY=PASSIVE" in said["threads"]
    assert processor.this_processor().most_threads >= 1


if __name__ == "__main__":
    pipe = SanaPipeline.from_pretrained("glyph")
    latent = doctor.drawn(pipe)
    ASSETS.mkdir(exist_ok=True)
    save_file({"latent": latent}, ASSETS / doctor.LATENT)
    pixels = to_pixels(doctor.decoded(pipe, latent)[None])[0]
    Image.fromarray(pixels).save(ASSETS / doctor.PICTURE, optimize=True)
