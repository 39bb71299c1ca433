"""The commands that measure on the data set of the embedded model."""
