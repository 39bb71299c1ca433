"""The `sanakit` command: one file a group of verbs, options as types.

May import everything, but nothing slow at the top: a command imports torch when it runs.
"""
