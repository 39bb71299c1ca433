#!/usr/bin/env bash
# The speedrun, first of three pieces: pictures, tokenizer, language model, most of the autoencoder.
UNTIL=autoencoder
. "$(dirname "$0")/speedrun.sh"
