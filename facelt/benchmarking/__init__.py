"""Recipes run over seeds, their records and the benchmark table."""
