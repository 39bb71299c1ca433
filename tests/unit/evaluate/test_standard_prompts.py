"""Published prompt lists: read in their order, refused where they are something else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sanakit.errors import ConfigError, DataError
from sanakit.evaluate.benchmark_prompts import Prompt, in_rows_of_two, jobs_of, read_prompts


def test_each_list_is_read_in_its_order_and_by_its_names(tmp_path: Path) -> None:
    rows = [{"tag": "colors", "prompt": "a"}, {"tag": "position", "prompt": "b"}]
    file = tmp_path / "evaluation_metadata.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert read_prompts(file, "geneval") == [
        Prompt(name=f"{n:05d}", text=row["prompt"], line=json.dumps(row))
        for n, row in enumerate(rows)
    ]
    assert [one.line for one in read_prompts(file, "clip")] == ["", ""]
    for name in ("2", "10", "1"):
        (tmp_path / f"{name}.txt").write_text(f"{name}  of\n it \n", encoding="utf-8")
    found = read_prompts(tmp_path, "dpg")
    assert [(one.name, one.text) for one in found] == [(n, f"{n} of it") for n in ("1", "2", "10")]
    assert read_prompts(tmp_path, "clip") == found
    mjhq = tmp_path / "meta_data.json"
    mjhq.write_text('{"b": {"prompt": "x", "category": "people"}, "a": "y"}', encoding="utf-8")
    assert [(one.name, one.text) for one in read_prompts(mjhq, "fid")] == [("b", "x"), ("a", "y")]
    plain = tmp_path / "list"
    plain.write_text(" one \n\ntwo\n", encoding="utf-8")
    found = read_prompts(plain, "clip")
    assert [(one.name, one.text) for one in found] == [("00000", "one"), ("00001", "two")]


@pytest.mark.parametrize(
    ("name", "text", "benchmark", "said"),
    [
        ("x.jsonl", '{"prompt": "a"}', "geneval", "row 1 has no tag"),
        ("x.jsonl", '{"tag": "a", "text": "b"}', "geneval", "row 1 has no prompt"),
        ("x.jsonl", "[1]", "clip", "row 1 has no prompt"),
        ("x.jsonl", "{", "clip", "cannot be read"),
        ("x.jsonl", '{"prompt": "a"}', "dpg", "no prompt list of dpg"),
        ("x.txt", "a", "geneval", "no prompt list of geneval"),
        ("x.txt", " \n", "clip", "holds no prompts"),
        ("x.json", "[]", "clip", "no object of prompts"),
        ("x.json", '{"../a": "b"}', "clip", "no name with a prompt"),
        ("x.json", '{"a": {"text": "b"}}', "fid", "no name with a prompt"),
    ],
)
def test_a_list_of_another_layout_is_refused(
    tmp_path: Path, name: str, text: str, benchmark: str, said: str
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        read_prompts(tmp_path / name, benchmark)  # type: ignore[arg-type]


def test_absent_lists_and_unknown_benchmarks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_prompts(tmp_path / "none", "dpg")
    with pytest.raises(ConfigError, match="no benchmark 'hps'"):
        read_prompts(tmp_path, "hps")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no prompt list of geneval"):
        read_prompts(tmp_path, "geneval")


def test_every_picture_has_a_seed_and_a_place_of_its_own() -> None:
    prompts = [Prompt(name=f"{n:05d}", text=str(n), line="{}") for n in range(3)]
    for benchmark in ("geneval", "clip"):
        jobs = jobs_of(prompts, benchmark, each=2, seed=5)  # type: ignore[arg-type]
        assert [seed for job in jobs for seed in job.seeds] == [5, 6, 7, 8, 9, 10]
        assert len({file for job in jobs for file in job.files}) == 6
    assert jobs_of(prompts, "geneval", each=1)[2].metadata == "00002/metadata.jsonl"
    assert [job.files for job in jobs_of(prompts, "dpg", each=4)][1] == ("00001.png",)
    for benchmark, each in (("dpg", 5), ("clip", 0)):
        with pytest.raises(ConfigError, match="pictures a prompt"):
            jobs_of(prompts, benchmark, each=each)  # type: ignore[arg-type]


def test_four_pictures_lie_left_right_and_the_row_below() -> None:
    pictures = [np.full((2, 3, 3), number, np.uint8) for number in range(1, 5)]
    whole = in_rows_of_two(pictures)
    assert whole.shape == (4, 6, 3)
    assert whole[[0, 0, 2, 2], [0, 3, 0, 3], 0].tolist() == [1, 2, 3, 4]
    assert in_rows_of_two(pictures[:1]).shape == (2, 3, 3)
    three = in_rows_of_two(pictures[:3])
    assert three.shape == (4, 6, 3)
    assert not three[2:, 3:].any()
