from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from sanakit.errors import MissingModelError
from sanakit.weights import embedded
from sanakit.weights.embedded import embedded_folder, resolve_model


def model_at(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    return folder


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package of which only its assets exist, and a working folder beside it."""
    monkeypatch.setattr(embedded, "files", lambda name: tmp_path / name)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(
        embedded, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub")
    )
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


def test_a_cached_repository_is_not_asked_for_again(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_at(package / "cache")
    calls = []

    def snapshot(repository: str, *, local_files_only: bool, **_: object) -> str:
        calls.append((repository, local_files_only))
        return str(folder)

    monkeypatch.setattr(embedded, "snapshot_download", snapshot)
    assert resolve_model("some/model") == folder
    assert calls == [("some/model", True)]


def test_a_repository_that_is_not_cached_is_downloaded_without_code_or_pickles(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_at(package / "cache")
    refused = []

    def snapshot(repository: str, *, local_files_only: bool, **more: list[str]) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("no")
        refused.extend(more["ignore_patterns"])
        return str(folder)

    monkeypatch.setattr(embedded, "snapshot_download", snapshot)
    assert resolve_model("some/model") == folder
    assert {"*.bin", "*.py", "*.ckpt"} <= set(refused)


@pytest.mark.parametrize(
    "error", [LocalEntryNotFoundError("no route\nlong story"), OfflineModeIsEnabled("offline")]
)
def test_without_a_network_the_error_is_one_line_and_a_hint(
    package: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def snapshot(repository: str, *, local_files_only: bool, **_: object) -> str:
        raise LocalEntryNotFoundError("no") if local_files_only else error

    monkeypatch.setattr(embedded, "snapshot_download", snapshot)
    with pytest.raises(MissingModelError, match="cannot be downloaded") as caught:
        resolve_model("some/model")
    assert "\n" not in caught.value.message
