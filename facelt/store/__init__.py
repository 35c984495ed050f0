"""Embedding stores, MegaFace feature trees, attribute tables."""
