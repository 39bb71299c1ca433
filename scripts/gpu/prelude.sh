# Sourced by the scripts beside it: where Python is, where results go, what is missing.
#
# Nothing is installed. What `import sanakit` and `sanakit train` need: torch, transformers,
# tokenizers, safetensors, tensorboardX, huggingface_hub, accelerate, einops, filelock, fsspec,
# jaxtyping, numpy, pillow, psutil, typer, rich; the tests need pytest, hypothesis and beartype, too.
# Where a few of them are missing and nothing can be fetched, bring them along, from a machine with a
# network, in the root of the checkout:
#   pip install --no-deps --target .gpu-packages tensorboardX beartype
#
# OUT      folder of the results (default runs/gpu); a step whose result is there is left out
# PYTHON   default .venv/bin/python, else python3
# DEVICE   cuda, or cpu to rehearse: everything is then tiny
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
if [ -z "${PYTHON:-}" ]; then
  PYTHON=$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)
fi
OUT=$(mkdir -p "${OUT:-runs/gpu}" && cd "${OUT:-runs/gpu}" && pwd)
DEVICE=${DEVICE:-cuda}
export PYTHONPATH="$PWD/src:$PWD:$PWD/.gpu-packages${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONWARNINGS=ignore
WORK=${WORK:-$OUT/work-$(basename "$0" .sh)} # runs and sets, too large to be carried away
sanakit() { "$PYTHON" -m sanakit "$@"; }

"$PYTHON" - "$DEVICE" <<'PYTHON'
import importlib.util
import sys

needed = """torch transformers tokenizers safetensors tensorboardX huggingface_hub accelerate einops
filelock fsspec jaxtyping numpy PIL psutil typer rich""".split()
if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
    sys.exit(f"error: not installed: {' '.join(missing)}\n"
             "  hint: scripts/gpu/prelude.sh says how to bring them along")
import torch

print(f"python {sys.version.split()[0]}, torch {torch.__version__}")
if sys.argv[1] == "cuda":
    if not torch.cuda.is_available():
        sys.exit("error: torch finds no CUDA device\n"
                 "  hint: look at nvidia-smi, and whether this build of torch is one for CUDA; "
                 "DEVICE=cpu rehearses")
    device = torch.cuda.get_device_properties(0)
    print(f"{device.name}, {device.total_memory / 2**30:.0f} GiB")
PYTHON
