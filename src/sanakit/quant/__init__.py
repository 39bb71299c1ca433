"""Linear layers in 8 and 4 bits while a model runs: chosen by a config, made by optional libraries.

May import weights and models.
"""
