from __future__ import annotations

import hashlib
import json
import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from sanakit.errors import ConfigError, DataError, MissingModelError, WeightsError
from sanakit.weights.hub import cached_repository, fetch, latest_commit, remove, verify
from sanakit.weights.layout import missing_by_structure, stored_variant
from sanakit.weights.lockfile import LOCKFILE, read_lockfile, repository_folder
from sanakit.weights.resolve import resolve_model
from stand_in_hub import TOKEN, StandInHub, pipeline_files, serving

SANA = "Efficient-Large-Model/Sana_1600M_1024px_diffusers"
OTHER = "some/model"
WEIGHTS = "transformer/diffusion_pytorch_model.fp16.safetensors"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    monkeypatch.chdir(tmp_path)
    with serving(tmp_path / "cache", monkeypatch) as server:
        server.publish(SANA, pipeline_files())
        yield server


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_an_alias_fetches_the_recommended_variant_and_no_other(hub: StandInHub) -> None:
    folder = resolve_model("sana-1.6b")
    held = files_in(folder)
    published = pipeline_files()
    assert held == {name: published[name] for name in held}
    weights = [name for name in held if name.endswith(".safetensors")]
    assert len(weights) == 3
    assert all(".fp16." in name for name in weights)
    assert cached_repository(SANA).complete


def test_what_is_here_is_not_asked_for_again(hub: StandInHub) -> None:
    folder = resolve_model("sana-1.6b")
    before = len(hub.requests)
    assert resolve_model(SANA.lower()) == folder
    assert resolve_model("sana-1.6b", offline=True) == folder
    assert len(hub.requests) == before


def test_the_token_goes_to_the_hub_and_not_to_its_storage(hub: StandInHub) -> None:
    fetch(SANA)
    assert ("127.0.0.1", f"Bearer {TOKEN}") in hub.tokens
    assert {token for host, token in hub.tokens if host == "localhost"} == {None}


def test_a_component_without_the_variant_comes_plain_and_it_is_said(hub: StandInHub) -> None:
    variants = {"text_encoder": [None], "transformer": [None, "fp16"], "vae": [None]}
    hub.publish(SANA, pipeline_files(variants))
    notes: list[str] = []
    folder = fetch(SANA, report=notes.append)
    assert (folder / WEIGHTS).is_file()
    assert (folder / "text_encoder/model.safetensors").is_file()
    assert not (folder / WEIGHTS.replace(".fp16", "")).exists()
    assert [note.split(": ")[1].split()[0] for note in notes] == ["text_encoder", "vae"]
    assert "no fp16 variant" in notes[0]
    assert stored_variant(folder / "vae", "fp16") is None
    assert stored_variant(folder / "transformer", "fp16") == "fp16"


def test_a_variant_that_the_caller_names_must_exist(hub: StandInHub) -> None:
    with pytest.raises(MissingModelError, match=r"no variant 'bf16'\n.*fp16|plain"):
        fetch(SANA, variant="bf16")
    folder = fetch(SANA, variant="plain")
    assert sorted(name for name in files_in(folder) if "fp16" in name) == []


def test_another_variant_later_comes_beside_the_first(hub: StandInHub) -> None:
    first = fetch(SANA)
    asked = len(hub.downloaded())
    assert fetch(SANA, variant="plain") == first
    assert len(hub.downloaded()) == asked + 3
    with pytest.raises(MissingModelError, match="no variant"):
        fetch(SANA, variant="bf16", offline=True)


def test_a_subfolder_fetches_one_component(hub: StandInHub) -> None:
    folder = resolve_model(SANA, subfolder="transformer")
    assert {name.split("/")[0] for name in files_in(folder) if "/" in name} == {"transformer"}


def test_a_download_that_breaks_once_goes_on_where_it_broke(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    content = pipeline_files()[WEIGHTS]
    hub.cut_after[sha256(content)] = 1000
    folder = fetch(SANA)
    assert (folder / WEIGHTS).read_bytes() == content
    assert hub.ranges == ["bytes=1000-"]


def test_a_download_that_was_given_up_is_resumed_by_the_next_call(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def give_up(seconds: float) -> None:
        hub.broken.add(sha256(content))

    monkeypatch.setattr("time.sleep", give_up)
    content = pipeline_files()[WEIGHTS]
    hub.cut_after[sha256(content)] = 1000
    with pytest.raises(MissingModelError, match=r"cannot be downloaded.*\n.*goes on where"):
        fetch(SANA)
    part = repository_folder(SANA) / "blobs" / f"{sha256(content)}.incomplete"
    assert part.read_bytes() == content[:1000]
    assert not cached_repository(SANA).complete
    hub.broken.clear()
    hub.ranges.clear()
    downloaded = len(hub.downloaded())
    folder = fetch(SANA)
    assert (folder / WEIGHTS).read_bytes() == content
    assert hub.ranges == ["bytes=1000-"]
    assert not part.exists()
    assert len(hub.downloaded()) - downloaded <= 3  # what was whole is not loaded again
    assert verify(SANA)[1] == []


def test_a_partial_file_of_wrong_content_is_not_built_upon(hub: StandInHub) -> None:
    content = pipeline_files()[WEIGHTS]
    part = repository_folder(SANA) / "blobs" / f"{sha256(content)}.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"?" * 10)
    with pytest.raises(WeightsError, match="is not the file that the hub lists"):
        fetch(SANA)
    assert not part.exists()
    assert (fetch(SANA) / WEIGHTS).read_bytes() == content
    shutil.rmtree(repository_folder(SANA))
    part.parent.mkdir(parents=True)
    part.write_bytes(b"?" * (len(content) + 1))
    assert (fetch(SANA) / WEIGHTS).read_bytes() == content


@pytest.mark.parametrize("name", [WEIGHTS, "transformer/config.json"])
def test_a_file_that_is_not_what_the_hub_lists_is_refused_and_not_kept(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    content = pipeline_files()[name]
    if name == WEIGHTS:
        hub.contents[sha256(content)] = b"x" * len(content)
    else:  # the listing is made of the same files: change this one after it

        def after_listing(*_: object) -> None:
            repository = hub.repositories[SANA]
            repository.commits[repository.branches["main"]][name] = b"[]"

        monkeypatch.setattr("sanakit.weights.hub._check_space", after_listing)
    with pytest.raises(WeightsError, match=f"{name}.*sha256 differs"):
        fetch(SANA)
    blobs = repository_folder(SANA) / "blobs"
    bad = {b"x" * len(content), b"[]"}
    assert not [path for path in blobs.iterdir() if path.read_bytes() in bad]
    assert not cached_repository(SANA).complete


def test_a_revision_stays_pinned_until_one_says_update(hub: StandInHub) -> None:
    first = fetch(SANA)
    second_commit = hub.publish(SANA, pipeline_files({"transformer": [None, "fp16"]}))
    assert fetch(SANA) == first
    assert latest_commit(SANA, "main") == second_commit != first.name
    assert fetch(SANA, update=True).name == second_commit
    assert fetch(SANA).name == second_commit
    assert (repository_folder(SANA) / "refs/main").read_text() == second_commit
    assert fetch(f"{SANA}@{first.name}") == first
    assert fetch(SANA, revision=first.name, offline=True) == first


def test_a_broken_download_ends_at_the_commit_at_which_it_began(hub: StandInHub) -> None:
    first = fetch(SANA)
    (first / WEIGHTS).unlink()
    hub.publish(SANA, {**pipeline_files(), "transformer/config.json": b"[]"})
    folder = fetch(SANA)
    assert folder == first
    assert (folder / "transformer/config.json").read_bytes() == b"{}"


@pytest.mark.parametrize("name", ["a/b@../x", "a/b@", "a/b@-x", "a/b@x y"])
def test_a_revision_that_is_none_is_refused_before_anything_is_asked(
    hub: StandInHub, name: str
) -> None:
    with pytest.raises(ConfigError, match="no revision"):
        fetch(name)
    with pytest.raises(ConfigError, match="two revisions"):
        fetch("a/b@x", revision="y")
    assert hub.requests == []


@pytest.mark.parametrize("environment", [False, True])
def test_offline_fails_at_once_and_names_what_is_missing(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch, environment: bool
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", environment)
    with pytest.raises(MissingModelError, match=r"nothing of its revision main.*offline") as caught:
        fetch(SANA, offline=not environment)
    assert caught.value.exit_code == 3
    assert "sanakit models pull sana-1.6b" in caught.value.hint
    assert hub.requests == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    (fetch(SANA) / WEIGHTS).unlink()
    asked = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", environment)
    with pytest.raises(MissingModelError, match=f"1 file missing.*{WEIGHTS}"):
        fetch(SANA, offline=not environment)
    assert len(hub.requests) == asked


def test_a_gated_repository_says_what_to_do(hub: StandInHub) -> None:
    hub.publish(OTHER, pipeline_files(), gated=True)
    with pytest.raises(MissingModelError, match=r"is gated\n.*hf auth login"):
        resolve_model(OTHER)


def test_a_repository_or_revision_that_is_not_there_is_said_to_be(hub: StandInHub) -> None:
    slip = "Efficient-Large-Model/Sana_1600M_1024_diffusers"
    with pytest.raises(MissingModelError, match=rf"no repository of the hub.*\n.*mean {SANA}"):
        resolve_model(slip)
    with pytest.raises(MissingModelError, match="no revision 'v9'"):
        resolve_model(f"{SANA}@v9")


def test_pickles_only_is_refused_before_a_byte_of_them_is_loaded(hub: StandInHub) -> None:
    hub.publish(OTHER, {"model_index.json": b"{}", "transformer/model.bin": b"\x80"})
    with pytest.raises(WeightsError, match=r"pickles only.*\n.*sanakit convert"):
        resolve_model(OTHER)
    assert hub.downloaded() == []


def test_no_network_is_one_line_and_a_hint(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(MissingModelError, match="cannot be downloaded") as caught:
        resolve_model(SANA)
    assert "\n" not in caught.value.message


def test_a_full_disk_is_noticed_before_the_download(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(10, 10, 0))
    with pytest.raises(DataError, match=r"needs 0.0 GB.*are free\n.*HF_HOME"):
        fetch(SANA)
    assert hub.downloaded() == []


def from_another_program(hub: StandInHub, **variants: list[str | None]) -> Path:
    """A cache that was filled by a program that writes no lockfile."""
    if variants:
        hub.publish(SANA, pipeline_files(variants))
    folder = fetch(SANA)
    (repository_folder(SANA) / LOCKFILE).unlink()
    return folder


def test_what_another_program_fetched_is_used(hub: StandInHub) -> None:
    plain = {"text_encoder": [None], "transformer": [None], "vae": [None]}
    folder = from_another_program(hub, **plain)
    asked = len(hub.requests)
    assert fetch(SANA) == folder
    assert len(hub.requests) == asked
    assert verify(SANA) == (len(files_in(folder)), [])
    (folder / "vae/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(MissingModelError, match=r"vae/diffusion_pytorch_model.safetensors"):
        fetch(SANA, offline=True)
    assert fetch(SANA) == folder
    assert (folder / "vae/diffusion_pytorch_model.safetensors").is_file()


def test_what_another_program_began_is_completed_at_its_commit(hub: StandInHub) -> None:
    folder = from_another_program(hub)
    (folder / "vae/config.json").unlink()
    hub.publish(SANA, {**pipeline_files(), "transformer/config.json": b"[]"})
    assert fetch(SANA) == folder
    assert (folder / "vae/config.json").is_file()


def test_a_variant_that_another_program_left_out_is_missing(hub: StandInHub) -> None:
    folder = from_another_program(hub)
    assert missing_by_structure(folder, variant="fp16") == []
    assert missing_by_structure(folder, variant="plain", subfolder="vae") == [
        "vae/diffusion_pytorch_model.safetensors"
    ]
    index = {"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}}
    (folder / "vae/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert missing_by_structure(folder, variant="plain") == [
        "text_encoder/model.safetensors",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/x-1.safetensors",
        "vae/x-2.safetensors",
    ]
    assert missing_by_structure(folder.parent) == ["model_index.json"]


def test_verify_finds_what_was_changed_planted_or_led_astray(
    hub: StandInHub, tmp_path: Path
) -> None:
    folder = fetch(SANA)
    count, findings = verify(SANA)
    assert count == len(files_in(folder))
    assert findings == []
    blob = (folder / WEIGHTS).resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    (folder / "transformer/evil.py").write_text("import os")
    outside = tmp_path / "outside.json"
    outside.write_text("{}")
    (folder / "vae/config.json").unlink()
    (folder / "vae/config.json").symlink_to(outside)
    (folder / "tokenizer/tokenizer.model").resolve().unlink()
    said = {finding.file.partition("/")[2]: finding.problem for finding in verify(SANA)[1]}
    assert "digest differs" in said.pop(WEIGHTS)
    assert "put it here" in said.pop("transformer/evil.py")
    assert "leads elsewhere" in said.pop("vae/config.json")
    assert "gone" in said.pop("tokenizer/tokenizer.model")
    # The contents of all empty configs are the same blob, so only the named ones are findings.
    assert said == {}


def test_a_damaged_lockfile_is_an_error_that_says_what_to_do(hub: StandInHub) -> None:
    fetch(SANA)
    path = repository_folder(SANA) / LOCKFILE
    for damage in ("{", "[]", '{"revisions": {"main": "x"}, "listings": {}, "licence": null}'):
        path.write_text(damage)
        with pytest.raises(WeightsError, match="sanakit models rm"):
            fetch(SANA)


def test_the_licence_of_the_page_is_written_down(hub: StandInHub) -> None:
    fetch(SANA)
    assert read_lockfile(SANA).licence == "nscl-v2-custom"


def test_remove_leaves_nothing_and_says_how_much_it_was(hub: StandInHub) -> None:
    fetch(SANA)
    size = cached_repository(SANA).bytes
    assert size > sum(len(pipeline_files()[n]) for n in pipeline_files() if ".fp16." in n)
    assert remove(SANA) == size
    assert cached_repository(SANA) is None
    assert not repository_folder(SANA).exists()
    for call in (remove, verify):
        with pytest.raises(MissingModelError, match="not in the local cache"):
            call(SANA)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sana-1.6b-pth", r"original format.*\n.*use sana-1.6b .*sanakit convert"),
        ("controlnet-1.6b-hed", r"original format.*\n.*sanakit convert"),
        ("svdq-int4-sana-1.6b", r"another engine\n.*use sana-1.6b-bf16"),
        ("sana-1.6", "did you mean 'sana-1.6b'"),
    ],
)
def test_a_name_that_cannot_be_loaded_says_which_can(hub: StandInHub, name: str, said: str) -> None:
    with pytest.raises(MissingModelError, match=said):
        resolve_model(name)
    assert hub.requests == []


def test_an_autoencoder_is_a_repository_of_its_own(hub: StandInHub) -> None:
    name = "mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers"
    files = {"config.json": b"{}", "diffusion_pytorch_model.safetensors": b"w" * 100}
    hub.publish(name, {**files, "model.onnx": b"o"})
    folder = resolve_model("dc-ae-f32c32-sana")
    assert files_in(folder) == files
    assert cached_repository(name).complete
