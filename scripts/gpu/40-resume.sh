#!/usr/bin/env bash
# Kill a training at random moments (kill -9), stop it (SIGTERM), go on each time: it has to reach
# its end from its last checkpoint, with the losses of a run without interruption. Some minutes.
. "$(dirname "$0")/prelude.sh"
mkdir -p "$WORK"
images=$([ "$DEVICE" = cpu ] && echo 96 || echo 3200)
set=$WORK/set
if [ ! -f "$set/shards/index.json" ]; then
  "$PYTHON" -m benchmarks.zorb "$WORK/pictures"
  sanakit data build "$WORK/pictures" --out "$set" --resolution 256
fi

# It is the process of Python that is to be killed, not a shell around it.
begin() {
  exec "$PYTHON" -m sanakit train diffusion --data "$set" --from glyph --out "$1" \
    --set total_images="$images" --set device="$DEVICE" --set log_every=1 --set pictures_every=0 \
    --set save_minutes=0.001 --set evaluate_every=1000 --set async_save=true
}
resume() { exec "$PYTHON" -m sanakit train diffusion --resume --out "$1"; }

if [ ! -f "$WORK/whole.done" ]; then
  rm -rf "$WORK/whole"
  (begin "$WORK/whole") >"$WORK/whole.txt" 2>&1
  touch "$WORK/whole.done"
fi

run=$WORK/killed
if [ ! -f "$WORK/killed.done" ]; then
  rm -rf "$run"
  rm -f "$OUT/40-resume.txt"
  for round in 1 2 3 4; do
    if [ "$round" = 1 ]; then (begin "$run") >"$WORK/$round.txt" 2>&1 & else
      (resume "$run") >"$WORK/$round.txt" 2>&1 &
    fi
    process=$!
    # From its first new lines on, some tenths of a second later.
    for _ in $(seq 600); do
      if [ "$(grep -c '^images' "$WORK/$round.txt")" -ge 2 ] || ! kill -0 $process 2>/dev/null; then
        break
      fi
      sleep 0.1
    done
    sleep "0.$((RANDOM % 10))"
    signal=$([ "$round" = 4 ] && echo TERM || echo KILL)
    kill -"$signal" $process 2>/dev/null || true
    status=0
    wait $process || status=$?
    echo "round $round: SIG$signal, exit code $status, $(grep '^resumed' "$WORK/$round.txt" || echo begun)" |
      tee -a "$OUT/40-resume.txt"
  done
  (resume "$run") | tee "$WORK/last.txt" | grep '^resumed' | tee -a "$OUT/40-resume.txt"
  touch "$WORK/killed.done"
fi
sanakit train show "$run" | tee -a "$OUT/40-resume.txt"
"$PYTHON" - "$WORK/whole" "$run" <<'PYTHON' | tee -a "$OUT/40-resume.txt"
import sys
from pathlib import Path

import torch

from sanakit.train.checkpoint import checkpoints, read_tensors, what_is_wrong
from sanakit.train.runs.log import read_log
from sanakit.train.runs.summary import standing

whole, killed = (Path(name) for name in sys.argv[1:])
ends = [checkpoints(run)[-1] for run in (whole, killed)]
assert ends[0].name == ends[1].name, ends
assert [what_is_wrong(end) for end in ends] == [None, None]
one, other = (read_tensors(end, "model") for end in ends)
same = all(torch.equal(one[name], other[name]) for name in one)
far = max(float((one[n].float() - other[n].float()).abs().max()) for n in one)
losses = [
    {line["images"]: line["loss"] for line in standing(read_log(run)) if "lr" in line}
    for run in (whole, killed)
]
apart = max(abs(losses[0][n] - losses[1][n]) for n in losses[0])
print(f"the same images in {len(losses[0])} of {len(losses[1])} steps; losses at most {apart:.2g} "
      f"apart, weights {'equal' if same else f'at most {far:.2g} apart'}")
assert losses[0].keys() == losses[1].keys()
# On a GPU sums may be taken in another order; on a CPU nothing may differ.
assert same or torch.cuda.is_available()
PYTHON
