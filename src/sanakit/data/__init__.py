"""Pictures and captions become training sets: read, checked, captioned, built, encoded, streamed.

Every stage works unit by unit and can be killed at any moment. May import pipeline and all below
it, for the networks that describe, score and encode.
"""
