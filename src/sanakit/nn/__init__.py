"""Layers that any model may use; know no preset and no checkpoint."""
