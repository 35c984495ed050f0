"""MegaFace: its lists, noise lists, feature trees, protocol and report."""
