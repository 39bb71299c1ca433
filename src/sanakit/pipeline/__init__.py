"""A request becomes an image."""
