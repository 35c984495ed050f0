"""Audit of identification and verification errors by subgroup."""
