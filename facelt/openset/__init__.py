"""Open-set rejection methods."""
