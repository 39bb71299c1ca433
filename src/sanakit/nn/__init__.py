"""Layers that any model may use. They know no preset and no checkpoint."""
