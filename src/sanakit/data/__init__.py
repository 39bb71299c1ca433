"""Pictures and captions become training sets."""
