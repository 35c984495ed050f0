"""Fixtures of small training runs."""

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
    "finished_run",
    "interrupt",
    "metrics",
    "plain_stage",
    "rank_pool",
    "saved",
    "thin_backbone",
    "train",
]
