"""Backbones, embedding layers and pretrained weights."""
