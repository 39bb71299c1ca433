"""A picture from bytes to pixels of a size: format, decoding, colour, resizing and cropping."""
