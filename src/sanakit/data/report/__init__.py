"""The report of a training set: what is in it, what is not and why, as one page and a sheet."""
