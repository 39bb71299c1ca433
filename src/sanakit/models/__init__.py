"""Networks: a frozen config becomes a module; presets are configs with names.

May import nn and flow; knows no files.
"""
