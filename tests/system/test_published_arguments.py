"""Arguments of loading, saving and moving that published code writes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sanakit import AutoencoderDC, SanaPAGPipeline, SanaPipeline, SanaTransformer2DModel
from sanakit.errors import ConfigError, UnknownArgumentError
from sanakit.models.published import say_once
from sanakit.pipeline.load_arguments import NEEDLESS, REFUSED
from sanakit.weights.hub import fetch
from sanakit.weights.lockfile import asking
from stand_in_hub import StandInHub, pipeline_files, serving

LOADERS = [
    pytest.param(SanaPipeline.from_pretrained, id="pipeline"),
    pytest.param(SanaPAGPipeline.from_pretrained, id="pag"),
    pytest.param(
        lambda folder, **more: SanaTransformer2DModel.from_pretrained(
            folder, subfolder="transformer", **more
        ),
        id="transformer",
    ),
    pytest.param(
        lambda folder, **more: AutoencoderDC.from_pretrained(folder, subfolder="vae", **more),
        id="vae",
    ),
]
Loader = Callable[..., Any]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    say_once.cache_clear()
    caplog.set_level(logging.WARNING, logger="sanakit")
    yield caplog
    say_once.cache_clear()


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("name", NEEDLESS)
def test_a_needless_argument_is_taken_and_it_is_said_once(
    name: str, load: Loader, folder: Path, said: pytest.LogCaptureFixture
) -> None:
    off = {"low_cpu_mem_usage": False}.get(name, "something")
    for _ in range(2):
        load(folder, **{name: off})
    assert [note for note in said.messages if name in note] == [
        f"{name}={off!r} decides nothing here: {NEEDLESS[name]}"
    ]


@pytest.mark.parametrize("load", LOADERS)
def test_values_that_ask_for_nothing_are_taken_in_silence(
    load: Loader, folder: Path, said: pytest.LogCaptureFixture
) -> None:
    for value in (None, False):
        load(folder, **{name: value for name in {**NEEDLESS, **REFUSED} if "low_cpu" not in name})
    load(
        folder,
        low_cpu_mem_usage=True,
        use_safetensors=None,
        cache_dir=None,
        token=None,
        force_download=False,
        max_memory=None,
        variant=None,
        revision=None,
    )
    assert not said.messages


@pytest.mark.parametrize("load", LOADERS)
def test_what_would_run_code_or_read_pickles_is_refused(load: Loader, folder: Path) -> None:
    for name in REFUSED:
        with pytest.raises(ConfigError, match=f"{name}=True"):
            load(folder, **{name: True})
    with pytest.raises(ConfigError, match="would read pickles"):
        load(folder, use_safetensors=False)
    with pytest.raises(UnknownArgumentError, match=r"'cashe_dir'\n.*did you mean 'cache_dir'\?"):
        load(folder, cashe_dir="here")


@pytest.mark.parametrize("load", LOADERS)
def test_a_dtype_is_asked_for_by_either_name(load: Loader, folder: Path) -> None:
    for more in ({"dtype": torch.bfloat16}, {"torch_dtype": torch.bfloat16}):
        assert load(folder, **more).dtype == torch.bfloat16
    assert load(folder, dtype={"transformer": torch.float64, "vae": torch.float64}).dtype == (
        torch.float64
    )
    assert load(folder, dtype=torch.float64, torch_dtype=torch.float64).dtype == torch.float64
    with pytest.raises(ConfigError, match=r"torch_dtype=torch\.float32 and dtype=torch\.bfloat16"):
        load(folder, torch_dtype=torch.float32, dtype=torch.bfloat16)


def test_memory_is_limited_where_parts_are_spread(folder: Path) -> None:
    pipe = SanaPipeline.from_pretrained(folder, device_map="balanced", max_memory={"cpu": "1GB"})
    assert pipe.device.type == "cpu"
    with pytest.raises(ConfigError, match="is read with device_map='balanced'"):
        SanaPipeline.from_pretrained(folder, max_memory={0: "1GB"})
    with pytest.raises(ConfigError, match=r"max_memory=.* is none"):
        SanaPipeline.from_pretrained(folder, device_map="balanced", max_memory={"cpu": "plenty"})


def test_safetensors_are_written_where_pickles_were_asked_for(
    folder: Path, tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    pipe = SanaPipeline.from_pretrained(folder)
    pipe.save_pretrained(tmp_path / "m", safe_serialization=False)
    pipe.vae.save_pretrained(tmp_path / "vae", safe_serialization=False)
    written = [*(tmp_path / "m").rglob("*.safetensors"), *(tmp_path / "vae").glob("*.safetensors")]
    assert len(written) == 4
    assert not list(tmp_path.rglob("*.bin"))
    assert ["pickles are not written" in note for note in said.messages] == [True]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    with serving(tmp_path / "usual", monkeypatch) as server:
        yield server


def files_of(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_a_model_is_kept_in_the_cache_that_is_named(
    hub: StandInHub, folder: Path, tmp_path: Path
) -> None:
    hub.publish("some/tiny", files_of(folder))
    pipe = SanaPipeline.from_pretrained("some/tiny", cache_dir=tmp_path / "mine", token="hf_mine")
    assert pipe.transformer.config.num_layers == 2
    assert (tmp_path / "mine" / "models--some--tiny").is_dir()
    assert not (tmp_path / "usual" / "models--some--tiny").exists()
    assert {token for _, token in hub.tokens} == {"Bearer hf_mine", None}
    asked = len(hub.requests)
    AutoencoderDC.from_pretrained("some/tiny", subfolder="vae", cache_dir=str(tmp_path / "mine"))
    assert len(hub.requests) == asked


def test_a_forced_download_mends_what_is_damaged_and_only_that(hub: StandInHub) -> None:
    hub.publish("some/model", pipeline_files())
    here = fetch("some/model")
    broken = next(here.rglob("vae/*.safetensors"))
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-1] + b"\0")
    before = len(hub.downloaded())
    assert fetch("some/model") == here
    assert broken.read_bytes() != whole
    with asking(force_download=True):
        assert fetch("some/model") == here
    assert broken.read_bytes() == whole
    assert len(hub.downloaded()) == before + 1
