"""What is split over ranks: ranges of classes, and reductions over the logits that lie in them."""

from facelt.parallel.class_range import ClassRange
from facelt.parallel.sharded_logits import ShardedLogits

__all__ = ["ClassRange", "ShardedLogits"]
