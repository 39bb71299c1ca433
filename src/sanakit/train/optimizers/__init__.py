"""Optimizers whose states are small, load bit for bit, and lie as their weights are sharded."""
