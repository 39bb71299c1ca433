from __future__ import annotations

import logging
from pathlib import Path

import pytest

from sanakit.errors import ConfigError, MissingModelError
from sanakit.weights import hub, resolve
from sanakit.weights.resolve import embedded_folder, resolve_model


def model_at(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    return folder


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package of which only its assets exist, and a working folder beside it."""
    monkeypatch.setattr(resolve, "files", lambda name: tmp_path / name)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(hub, "fetch", lambda *_, **__: pytest.fail("asked the hub"))
    return tmp_path / "sanakit"


def test_an_embedded_name_is_a_folder_of_the_package(package: Path) -> None:
    folder = model_at(package / "assets" / "glyph")
    assert embedded_folder("glyph") == folder
    assert resolve_model("glyph") == folder


def test_an_embedded_name_wins_over_a_folder_unless_written_as_a_path(package: Path) -> None:
    inside = model_at(package / "assets" / "glyph")
    model_at(Path("glyph").absolute())
    assert resolve_model("glyph") == inside
    assert resolve_model("./glyph").absolute() == Path("glyph").absolute()
    assert resolve_model(Path("glyph")).absolute() == Path("glyph").absolute()


def test_an_embedded_model_that_was_left_out_is_said_to_be(package: Path) -> None:
    with pytest.raises(MissingModelError, match="not in this installation"):
        resolve_model("glyph")
    with pytest.raises(MissingModelError, match=r"'other' is not embedded\n.*glyph"):
        embedded_folder("other")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("glyhp", "did you mean 'glyph'"),
        ("sdxl", "embedded: glyph"),
        ("", "embedded: glyph"),
        ("./nothing", "no such folder"),
        ("a/b/c", "no such folder"),
        ("~/no-such-folder-there", "no such folder"),
        (Path("glif"), "no such folder"),
    ],
)
def test_a_name_that_is_nothing_says_what_there_is(
    package: Path, name: str | Path, said: str
) -> None:
    with pytest.raises(MissingModelError, match=said) as caught:
        resolve_model(name)
    assert caught.value.exit_code == 3


def test_a_folder_that_is_no_model_says_what_it_holds_and_where_to_look(package: Path) -> None:
    model_at(Path("all/one/"))
    Path("all/one/vae").mkdir()
    Path("all/one/vae/config.json").write_text("{}")
    with pytest.raises(MissingModelError, match=r"it holds one\n.*models inside it: one"):
        resolve_model("all")
    with pytest.raises(MissingModelError, match=r"holds config.json\n.*the folder above: all.one"):
        resolve_model("all/one/vae")
    with pytest.raises(MissingModelError, match="is a file"):
        resolve_model("all/one/model_index.json")


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("some/model", "some/model"),
        ("some/model@v1.0", "some/model@v1.0"),
        ("SANA-1.6b", "Efficient-Large-Model/Sana_1600M_1024px_diffusers"),
        ("sana-1.6b@v1", "Efficient-Large-Model/Sana_1600M_1024px_diffusers@v1"),
    ],
)
def test_a_repository_or_an_alias_is_fetched_with_what_was_asked(
    package: Path, monkeypatch: pytest.MonkeyPatch, name: str, repository: str
) -> None:
    folder = model_at(package / "cache")
    calls = []

    def fetch(repository: str, *, report: object, **more: object) -> Path:
        calls.append((repository, more))
        return folder

    monkeypatch.setattr(hub, "fetch", fetch)
    assert resolve_model(name, variant="bf16", offline=True) == folder
    asked = {"variant": "bf16", "revision": None, "subfolder": None, "offline": True}
    assert calls == [(repository, asked)]


def test_what_the_caller_should_know_of_a_download_is_logged(
    package: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = model_at(package / "cache")

    def fetch(repository: str, *, report: hub.Report, **_: object) -> Path:
        report("vae comes plain")
        return folder

    monkeypatch.setattr(hub, "fetch", fetch)
    resolve_model("some/model")
    assert caplog.record_tuples == [("sanakit.weights.resolve", logging.WARNING, "vae comes plain")]


def test_a_repository_that_is_no_pipeline_is_said_to_be_none(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = package / "cache"
    folder.mkdir(parents=True)
    monkeypatch.setattr(hub, "fetch", lambda *_, **__: folder)
    with pytest.raises(MissingModelError, match=r"no model_index.json\n.*_diffusers"):
        resolve_model("some/model")
    assert resolve_model("dc-ae-f32c32-sana") == folder
    assert resolve_model("some/model", subfolder="transformer") == folder


@pytest.mark.parametrize(
    ("address", "repository"),
    [
        ("https://huggingface.co/owner/name", "owner/name"),
        ("huggingface.co/owner/na.me/", "owner/na.me"),
        ("https://hf.co/owner/name/tree/main", "owner/name@main"),
        ("https://huggingface.co/owner/name/blob/v1/vae/config.json?x=1", "owner/name@v1"),
    ],
)
def test_a_page_of_the_hub_is_answered_with_what_to_type(address: str, repository: str) -> None:
    with pytest.raises(MissingModelError, match="is a page of the hub") as caught:
        resolve_model(address)
    assert caught.value.hint == f"name its repository: {repository}"


def test_a_folder_wins_over_an_alias_and_has_no_revision(
    package: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model_at(Path("sana-1.6b").absolute())
    assert resolve_model("sana-1.6b").absolute() == Path("sana-1.6b").absolute()
    assert resolve_model("sana-1.6b", revision="v1") == resolve_model("sana-1.6b")
    assert caplog.messages == ["revision='v1' decides nothing here: sana-1.6b is on this disk"]


@pytest.mark.parametrize("given", [None, 5, b"glyph", []])
def test_what_is_no_name_and_no_path_is_refused(given: object) -> None:
    with pytest.raises(ConfigError, match=f"the model is of type {type(given).__name__}"):
        resolve_model(given)  # type: ignore[arg-type]
