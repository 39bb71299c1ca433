"""Figures with intervals: how well an autoencoder restores, what a model makes of a prompt list.

Features of pictures, distances of sets of features, published benchmarks. May import all of the
package but the command line.
"""
