# Sourced by 50, 51 and 52: one piece of the speedrun (recipes/glyph), on a machine that may be bare.
#
# What it begins with lies in the root of the checkout, in folders that git ignores:
#   .gpu-inputs    python -m recipes.glyph.inputs gpu --data data/glyph --to .gpu-inputs
#   .gpu-packages  what this Python lacks; for the pictures at least, if it has no resvg-py:
#                  pip install --no-deps --only-binary=:all: --python-version 3.12 \
#                    --platform manylinux_2_28_x86_64 --target .gpu-packages resvg-py
#   .gpu-carry     the folder `carry` that the piece before left in its $OUT
# On a machine that still has $WORK from the piece before, the carry is not looked at.
#
# All that travels has to stay below 64 MB, and the embedded model alone is 43: it is not needed here.
# A checkout without it, of which git says that nothing is changed:
#   git worktree add --no-checkout ../lean && cd ../lean
#   git sparse-checkout set --no-cone '/*' '!/src/sanakit/assets/glyph/' '!/docs/*.png'
#   git checkout
#
# MINUTES  how long the piece may take (default 9.5)
WORK=${WORK:-runs/speedrun}
. "$(dirname "$0")/prelude.sh"
"$PYTHON" -c "import resvg_py" 2>/dev/null || {
  echo "error: not installed: resvg-py, which draws the pictures" >&2
  echo "  hint: scripts/gpu/speedrun.sh says how to bring it along" >&2
  exit 1
}
preset=gpu
if [ "$DEVICE" = cpu ]; then preset=tiny; fi
told=("$preset" --out "$WORK" --minutes "${MINUTES:-9.5}" --set "whole.device=$DEVICE")
if [ -n "${UNTIL:-}" ]; then told+=(--until "$UNTIL"); fi
if [ "$preset" = gpu ] && [ -d .gpu-inputs ]; then told+=(--inputs .gpu-inputs); fi
if [ -f .gpu-carry/carry.json ]; then told+=(--carry .gpu-carry); fi

status=0
"$PYTHON" -m recipes.glyph "${told[@]}" 2>&1 | tee "$OUT/$(basename "$0" .sh).txt" || status=$?
rm -rf "$OUT/carry"
if [ -d "$WORK/carry" ]; then cp -r "$WORK/carry" "$OUT/carry"; fi
if [ "$status" -eq 75 ]; then # something is left to be done, as it should be
  echo "next: copy $OUT/carry to .gpu-carry of a lean checkout, and run the next script"
  echo "      (the same one, if it did not reach its end)"
  status=0
fi
exit "$status"
