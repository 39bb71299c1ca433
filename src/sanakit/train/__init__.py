"""Training: one loop, and recipes that give it batches and losses.

The loop, its config, checkpoints, EMA and the sample schedule stand here; what is trained is in
`recipes`, ranks in `distributed`, optimizers in `optim`, runs on disk in `runs`. May import data
and all below it.
"""
