"""Fixtures of small training runs and of photographs, shared with tests/training and tests/alignment."""

from tests.alignment.conftest import drawn, photos
from tests.training.fixtures import (
    assert_same_weights,
    finished_run,
    interrupt,
    metrics,
    plain_stage,
    rank_pool,
    saved,
    thin_backbone,
    train,
)

__all__ = [
    "assert_same_weights",
    "drawn",
    "finished_run",
    "interrupt",
    "metrics",
    "photos",
    "plain_stage",
    "rank_pool",
    "saved",
    "thin_backbone",
    "train",
]
