"""Fixtures for commands that run as several ranks."""

from tests.training.fixtures import rank_pool

__all__ = ["rank_pool"]
