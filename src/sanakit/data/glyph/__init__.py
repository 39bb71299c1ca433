"""The recipe `glyph`: packages of permissively licensed art become captioned pictures."""
