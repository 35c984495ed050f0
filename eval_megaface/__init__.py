"""MegaFace evaluation: suite, protocol, report."""
