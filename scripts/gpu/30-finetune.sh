#!/usr/bin/env bash
# Fine-tune the embedded model on thirty pictures: bf16, fp16 with its loss scale, a LoRA; draw.
# Each run is resumed where it was stopped. About five minutes.
. "$(dirname "$0")/prelude.sh"
mkdir -p "$WORK"
images=$([ "$DEVICE" = cpu ] && echo 32 || echo 3200)
set=$WORK/set
if [ ! -f "$set/shards/index.json" ]; then
  "$PYTHON" -m benchmarks.zorb "$WORK/pictures"
  sanakit data build "$WORK/pictures" --out "$set" --resolution 256
fi

tune() { # NAME OPTIONS...: one run, its log, and whether it learned
  local name=$1 run=$WORK/$1
  shift
  if [ -f "$OUT/30-$name.jsonl" ]; then
    echo "$name: there already"
    return
  fi
  echo "== $name"
  if [ -f "$run/run.json" ]; then
    sanakit train diffusion --resume --out "$run"
  else
    sanakit train diffusion --data "$set" --from glyph --out "$run" --prompt "a zorb" \
      --set total_images="$images" --set device="$DEVICE" --set log_every=1 \
      --set evaluate_every=20 --set pictures_every=100 --set save_minutes=0.2 "$@"
  fi
  sanakit train show "$run"
  "$PYTHON" - "$run" "$DEVICE" <<'PYTHON'
import sys
from pathlib import Path

from sanakit.train.runs.log import read_log

lines = read_log(Path(sys.argv[1]))
steps = [line for line in lines if "lr" in line]
held = [line["held_seen_loss"] for line in lines if "held_seen_loss" in line]
bad = sum(line["loss"] is None for line in steps)
scales = sorted({line["loss_scale"] for line in steps if "loss_scale" in line})
skipped = max((line.get("skipped", 0) for line in steps), default=0)
rate = sorted(line["per_second"] for line in steps)[len(steps) // 2]
print(f"held loss {held[0]} to {held[-1]}, {rate} images/s, loss scales {scales}, "
      f"{skipped} steps skipped, {bad} losses not finite")
if sys.argv[2] == "cuda" and not held[-1] < 0.8 * held[0]:
    sys.exit("error: it did not learn")
PYTHON
  cp "$run/log.jsonl" "$OUT/30-$name.jsonl"
}

tune bf16
tune fp16 --set compute_dtype=float16
tune lora --lora 32
for name in bf16 fp16; do
  last=$(ls "$WORK/$name/pictures" | tail -1)
  cp "$WORK/$name/pictures/$last" "$OUT/30-$name.png"
done
