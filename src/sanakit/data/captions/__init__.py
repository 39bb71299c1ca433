"""Captions: written by models, scored against their pictures, chosen for an epoch."""
