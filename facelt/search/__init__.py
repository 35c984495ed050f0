"""Exact top-k search of memory-mapped embeddings."""
