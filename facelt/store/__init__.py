"""Embedding stores: folders of memory-mapped embeddings with their items."""
