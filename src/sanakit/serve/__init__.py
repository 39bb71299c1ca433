"""Drawing for many, over HTTP: a queue, one process that owns the model, a history, and routes.

The web process never loads torch. May import pipeline's values, images and files.
"""
