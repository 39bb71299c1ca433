"""The mathematics of the path from data to noise: path, grids, solvers, guidance.

Functions of tensors that know no network, file or device.
"""
