"""Losses, one small file each."""

from facelt.losses.centroids import discriminative_centroids

__all__ = ["discriminative_centroids"]
