"""A picture from bytes to pixels: format, decoding, color."""
