"""One loop, recipes as functions from batch to loss."""
