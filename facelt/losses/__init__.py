"""Loss functions by family."""
