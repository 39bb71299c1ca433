"""A request becomes a picture: components, prompts, sampler, decoder, and the one orchestrator.

Schedulers under their published names, placement on devices and PNG files with settings belong to
it. May import quant, weights, models, nn and flow.
"""
