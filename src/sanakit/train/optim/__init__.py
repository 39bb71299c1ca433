"""Optimizers, and their states in eight bits and over ranks."""
