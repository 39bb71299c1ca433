"""Places that pictures and captions come from, read as they are: folders, tables, tars."""
