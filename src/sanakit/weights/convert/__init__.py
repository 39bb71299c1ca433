"""Original checkpoints to published folders, and back."""
