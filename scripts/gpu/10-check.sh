#!/usr/bin/env bash
# Run the tests that need a CUDA device; arguments go to pytest. About two minutes.
. "$(dirname "$0")/prelude.sh"
# Tests read their folders from the root, and treat warnings as errors.
unset PYTHONWARNINGS
status=0
"$PYTHON" -m pytest -m gpu -p no:cacheprovider "$@" 2>&1 | tee "$OUT/10-check.txt" || status=$?
if [ "$status" -eq 5 ]; then # pytest's word for: nothing was selected
  echo "there are no tests marked gpu"
  status=0
fi
exit "$status"
