"""Nothing of ours unpickles, except the one module that reads original checkpoints, with care."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[2] / "src" / "sanakit"
ONE_READER = SOURCES / "weights" / "convert" / "original_format.py"
"""Imports pickle for the name of its error, and loads tensors only."""
PICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
RECEIVERS = {"recv_pyobj", "send_pyobj", "Unpickler", "read_pickle", "loads_pickle"}
RUNNERS = {"eval", "exec"}


def faults(source: str, *, may_import: bool = False) -> list[str]:
    """What in a source unpickles, or runs text."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        if not may_import:
            found += [name for name in names if name.split(".")[0] in PICKLERS]
        if isinstance(node, ast.Attribute) and node.attr in RECEIVERS:
            found.append(node.attr)
        if isinstance(node, ast.Call):
            found += call_faults(node)
    return found


def call_faults(call: ast.Call) -> list[str]:
    said = {word.arg: ast.unparse(word.value) for word in call.keywords}
    called = ast.unparse(call.func)
    if called == "torch.load" and said.get("weights_only") != "True":
        return ["torch.load without weights_only=True"]
    if called in {"np.load", "numpy.load"} and said.get("allow_pickle", "False") != "False":
        return ["np.load of pickles"]
    if called in RUNNERS:
        return [called]
    if said.get("trust_remote_code", "False") not in ("False", "trust_remote_code"):
        return ["trust_remote_code"]
    return []


@pytest.mark.parametrize(
    "path", sorted(SOURCES.rglob("*.py")), ids=lambda path: path.relative_to(SOURCES).as_posix()
)
def test_nothing_unpickles(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert not faults(source, may_import=path == ONE_READER)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from dill import loads",
        "import joblib.numpy_pickle",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "socket.recv_pyobj()",
        "eval(text)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
    ],
)
def test_what_unpickles_is_found(source: str) -> None:
    assert faults(source)


def test_loading_tensors_is_none() -> None:
    assert not faults("torch.load(path, weights_only=True)\nnp.load(path)\nmodel.eval()")
