"""The pipelines that users of diffusers know, under their published arguments."""
