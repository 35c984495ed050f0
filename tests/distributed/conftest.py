"""Fixtures for tests that run as several ranks."""

from tests.training.fixtures import finished_run, rank_pool

__all__ = ["finished_run", "rank_pool"]
