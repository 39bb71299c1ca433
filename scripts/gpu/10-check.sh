#!/usr/bin/env bash
# Set up, name the CUDA device and run the tests that need one.
set -euo pipefail
cd "$(dirname "$0")/../.."
make setup-dev

.venv/bin/python - <<'PYTHON'
import sys

import torch

if not torch.cuda.is_available():
    sys.exit(f"error: torch {torch.__version__} finds no CUDA device\n"
             "  hint: look at nvidia-smi, and whether this build of torch is one for CUDA")
device = torch.cuda.get_device_properties(0)
print(f"torch {torch.__version__}, {device.name}, {device.total_memory / 2**30:.0f} GiB")
PYTHON

status=0
.venv/bin/python -m pytest -m gpu "$@" || status=$?
if [ "$status" -eq 5 ]; then # pytest's word for: nothing was selected
  echo "there are no tests marked gpu yet"
  status=0
fi
exit "$status"
