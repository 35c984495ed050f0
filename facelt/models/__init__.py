"""Backbones, the embedding layer and modulated attention."""
