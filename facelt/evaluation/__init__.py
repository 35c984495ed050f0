"""Closed-set and open-set evaluation of a trained model."""
