"""Optimizers and schedules; states in fp32 or eight bits, whole or in shards of rows."""
