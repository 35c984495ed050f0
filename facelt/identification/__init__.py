"""Rank-k identification and pseudo-shots."""
