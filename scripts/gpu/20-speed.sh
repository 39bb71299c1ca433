#!/usr/bin/env bash
# A training step of ours beside a plain loop around diffusers' model, in bf16, with the MFU.
# Without diffusers ours alone is timed. Cases that have a result in $OUT/20-speed.jsonl are left out.
. "$(dirname "$0")/prelude.sh"
results=$OUT/20-speed.jsonl
touch "$results"

measure() { # NAME OPTIONS...: one case
  local name=$1
  shift
  if grep -q "\"name\": \"$name\"" "$results"; then
    echo "$name: there already"
    return
  fi
  echo "== $name: $*"
  # A case that does not fit the memory ends itself alone.
  timeout "${LIMIT:-240}" "$PYTHON" -m benchmarks.train_step --device "$DEVICE" --name "$name" \
    --results "$results" "$@" || echo "$name: no result ($?)"
}

if [ "$DEVICE" = cpu ]; then
  tiny="--preset tiny --layers 1 --batch 2 --side 4 --tokens 8 --shortest 8 --longest 8 --repeats 2"
  measure tiny $tiny
  measure tiny-recomputed $tiny --checkpointing --loops ours
else
  measure 0.6b --layers 28 --batch 8 --repeats 10
  measure 0.6b-short --layers 28 --batch 8 --repeats 10 --shortest 30 --longest 120
  measure 0.6b-large --layers 28 --batch 32 --repeats 10 --loops ours
  measure 0.6b-compiled --layers 28 --batch 8 --repeats 10 --compiled --loops ours
  measure 1.6b-recomputed --preset sana-1.6b --layers 20 --batch 16 --repeats 5 --checkpointing
fi
