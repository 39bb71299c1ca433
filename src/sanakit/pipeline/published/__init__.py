"""The pipelines that users of diffusers know, under their published arguments.

They turn those arguments into one request and call `Pipeline`.
"""
