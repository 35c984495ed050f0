"""Benchmarks: recipes by name, runs of them with several seeds, and what was found beside what was published."""
