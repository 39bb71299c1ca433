"""The data set of the embedded model: pictures, captions, compositions."""
