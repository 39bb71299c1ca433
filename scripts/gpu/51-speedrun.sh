#!/usr/bin/env bash
# The speedrun, second piece: the rest of the autoencoder, and its decoder on noisy latents.
UNTIL=decoder
. "$(dirname "$0")/speedrun.sh"
