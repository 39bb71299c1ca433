"""The rows of the glyph set's mixture: one file a kind of art, each ready to be drawn."""
