"""Seconds, memory and distance to the machine's limit, beside others: `sanakit bench`."""
