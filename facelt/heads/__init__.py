"""Classifier heads and the identity memory."""
