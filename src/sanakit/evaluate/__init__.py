"""Instruments: how well an autoencoder restores, and how well a model draws what it is told."""
