"""Exact nearest-neighbour search over embedding stores."""
