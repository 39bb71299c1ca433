"""Scorers by name: a function of a file or a module, a sum with weights, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from sanakit.data.captions.scorers import scorer_named, scores_of, weight_of, weighted_scorer
from sanakit.errors import ConfigError, MissingModelError

SEEN = [Image.new("RGB", (2, 2)), Image.new("RGB", (2, 3))]
OWN = """
def heights(images, prompt):
    return [image.height + len(prompt) for image in images]

class Alone:
    alone = True

    def __call__(self, images, prompt):
        return [1.0] * len(images)

one = Alone()

def broken(images, prompt):
    return 1 / 0
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_scorers.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return str(tmp_path / "own_scorers.py")


def test_a_function_is_found_in_a_file_and_in_a_module_of_the_working_folder(own: str) -> None:
    for name in (f"{own}:heights", "own_scorers.py:heights", "own_scorers:heights"):
        assert scores_of(scorer_named(name), SEEN, "cat") == [5, 6]
    assert getattr(scorer_named(f"{own}:one"), "alone", False)
    assert not getattr(scorer_named(f"{own}:heights"), "alone", False)


def test_a_sum_weighs_its_parts(own: str) -> None:
    both = weighted_scorer([f"{own}:heights=-2", f"{own}:one=0.5"])
    assert scores_of(both, SEEN, "cat") == [-9.5, -11.5]
    assert weight_of("a=b/c") == ("a=b/c", 1.0)
    assert weight_of("a:b=1e-1") == ("a:b", 0.1)
    for wrong in ("=2", "a=nan", "a=inf"):
        with pytest.raises(ConfigError, match="reward"):
            weight_of(wrong)


def test_what_is_no_scorer_is_told_by_its_name(own: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"broken raised ZeroDivisionError") as caught:
        scores_of(scorer_named(f"{own}:broken"), SEEN, "cat")
    assert "2 pictures and the prompt 'cat'" in str(caught.value.hint)
    for name in (f"{own}:none", "no_such_module:score", f"{tmp_path / 'none.py'}:score"):
        with pytest.raises(ConfigError, match="cannot be had"):
            scorer_named(name)
    (tmp_path / "number.py").write_text("OWN = 'OWN'")
    with pytest.raises(ConfigError, match="OWN"):
        scorer_named(f"{tmp_path / 'number.py'}:OWN")
    with pytest.raises(MissingModelError):
        scorer_named(str(tmp_path / "no-clip"))
