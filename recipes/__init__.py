"""Whole trainings as one command each: `python -m recipes.glyph gpu`."""
