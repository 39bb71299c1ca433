"""Every set of pictures that the data is taken from."""
