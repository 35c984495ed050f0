"""What is split over ranks: ranges of classes, collectives with gradients, and reductions over split logits."""

from facelt.parallel.class_range import ClassRange
from facelt.parallel.class_sample import ClassSample
from facelt.parallel.collectives import (
    Shares,
    all_reduce,
    gather_batch,
    gather_ranks,
    gather_whole,
    replicated,
    scatter_sum,
)
from facelt.parallel.ranks import is_split, rank, world
from facelt.parallel.row_product import MIN_NORM, Rows, blocks
from facelt.parallel.sharded_logits import GivenLogits, ProductLogits, ShardedLogits
from facelt.parallel.shared_feature import SharedFeature
from facelt.parallel.split_state import split_entries

__all__ = [
    "MIN_NORM",
    "ClassRange",
    "ClassSample",
    "GivenLogits",
    "ProductLogits",
    "Rows",
    "ShardedLogits",
    "SharedFeature",
    "Shares",
    "all_reduce",
    "blocks",
    "gather_batch",
    "gather_ranks",
    "gather_whole",
    "is_split",
    "rank",
    "replicated",
    "scatter_sum",
    "split_entries",
    "world",
]
