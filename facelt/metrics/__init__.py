"""Shot bands, accuracy and intervals."""
