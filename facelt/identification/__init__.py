"""Identification among distractors, verification and open-set identification."""
