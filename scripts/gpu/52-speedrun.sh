#!/usr/bin/env bash
# The speedrun, last piece: latents, the transformer, the model, its contact sheet and figures.
. "$(dirname "$0")/speedrun.sh"
