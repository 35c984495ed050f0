"""Parametric synthetic faces for the demo and the tests. NumPy and OpenCV only."""
