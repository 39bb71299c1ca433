"""Pictures and captions become training sets: read, checked, captioned, sharded, served."""
