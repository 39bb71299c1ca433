"""A run on disk: its config, its log and curves, a summary of it, and what it will cost."""
