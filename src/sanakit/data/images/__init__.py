"""A picture from bytes to pixels of a size: format, decoding, color, resizing and cropping."""
