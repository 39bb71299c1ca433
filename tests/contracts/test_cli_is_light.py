"""`sanakit --help` answers at once because the command line imports nothing that is slow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SLOW = {"torch", "transformers", "tokenizers", "safetensors", "accelerate", "diffusers"}
SLOW |= {"huggingface_hub", "jaxtyping", "einops", "matplotlib", "numpy", "PIL"}


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize("module", ["sanakit", "sanakit.errors", "sanakit.cli.main"])
def test_importing_it_loads_nothing_slow(module: str) -> None:
    done = python(f"import sys, {module}; print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    assert not SLOW & set(done.stdout.split())


def test_asking_for_help_loads_nothing_slow() -> None:
    done = python(
        "import sys\n"
        "from sanakit.cli.main import main\n"
        "sys.argv = ['sanakit', '--help']\n"
        "try:\n    code = main()\n"
        "except SystemExit as leaving:\n    code = leaving.code\n"
        "print(code or 0, *sys.modules, file=sys.stderr)"
    )
    assert done.returncode == 0, done.stderr
    code, *loaded = done.stderr.splitlines()[-1].split()
    assert code == "0"
    assert "generate" in done.stdout
    assert not SLOW & set(loaded)


# Imported only for what asks for them: other language models, offloading, compiling, evaluation,
# and the hub with its HTTP client, for what is not on this disk.
NEEDLESS = {"transformers", "accelerate", "torchvision", "scipy", "pandas", "sklearn", "matplotlib"}
NEEDLESS |= {"peft", "torchao", "bitsandbytes", "diffusers"}
NEEDLESS |= {"sanakit.weights.hub", "huggingface_hub.file_download", "httpx", "requests"}
NEEDLESS |= {"torch._dynamo", "torch._inductor", "sympy", "torch.utils.tensorboard"}


@pytest.mark.parametrize(
    "code",
    [
        "from sanakit import SanaPipeline",
        "from sanakit.cli.main import main\n"
        "sys.argv = ['sanakit', 'generate', 'a red apple', '-o', 'apple.png', '--quiet']\n"
        "try:\n    main()\n"
        "except SystemExit as leaving:\n    assert not leaving.code",
    ],
    ids=["import", "generate"],
)
def test_a_picture_needs_no_more_than_torch(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = python(f"import sys\n{code}\nprint(*sys.modules)")
    assert done.returncode == 0, done.stderr
    assert not NEEDLESS & set(done.stdout.split())
