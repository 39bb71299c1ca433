"""Instruments that need the data set of the embedded model: judge, composition, memorisation."""
