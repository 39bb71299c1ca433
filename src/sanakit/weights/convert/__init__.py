"""Original checkpoints to published folders, and back.

Names live in `keymaps`, read both ways; `original_format` alone unpickles.
"""
