#!/usr/bin/env bash
# A request of 0.6B at 1024 px, 20 steps, in bf16: ours plain, with kernels, compiled, compiled with
# CUDA graphs, beside diffusers plain and compiled. Ways that have a result in $OUT are left out.
. "$(dirname "$0")/prelude.sh"
mkdir -p "$WORK"
# What is compiled once is kept.
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$WORK/inductor}
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$WORK/triton}
small=()
if [ "$DEVICE" = cpu ]; then
  small=(--weights tiny --size 64 --steps 2)
fi
"$PYTHON" -m benchmarks.gpu_requests --device "$DEVICE" --folder "$WORK/weights" \
  --limit "${LIMIT:-100}" --results "$OUT/50-draw.jsonl" "${small[@]}"
