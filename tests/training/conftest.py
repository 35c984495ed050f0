"""Fixtures of small training runs, shared with tests/training."""

from tests.training.fixtures import *  # noqa: F403
