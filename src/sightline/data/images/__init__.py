"""One image: decoding, preprocessing, and its statistics."""
