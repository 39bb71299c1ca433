"""A run on disk: what it was told, its log, how it does, what it will cost."""
