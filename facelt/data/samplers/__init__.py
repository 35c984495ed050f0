"""Which images a step sees, as pure functions of (seed, epoch, global position).

Nothing here knows ranks or workers: they take their share of what a sampler lists, so the sequence of global batches
never depends on them, and a run resumed at any step sees exactly what is left.
"""

from facelt.data.samplers.class_aware import ClassAwareSampler
from facelt.data.samplers.class_shares import (
    ClassBalancedSampler,
    ClassShareSampler,
    ProgressiveSampler,
    ReversedSampler,
    SquareRootSampler,
)
from facelt.data.samplers.even_classes import OverSampler, UnderSampler
from facelt.data.samplers.instance import InstanceSampler
from facelt.data.samplers.sampler import Sampler, TrainingSampler
from facelt.data.samplers.sequential import SequentialSampler

SAMPLERS: dict[str, type[TrainingSampler]] = {
    "instance": InstanceSampler,
    "class_aware": ClassAwareSampler,
    "class_balanced": ClassBalancedSampler,
    "square_root": SquareRootSampler,
    "progressive": ProgressiveSampler,
    "reversed": ReversedSampler,
    "oversample": OverSampler,
    "undersample": UnderSampler,
}
"""Training samplers by name; each is built as (labels, batch, seed, members=None, *, epochs)."""

__all__ = [
    "SAMPLERS",
    "ClassAwareSampler",
    "ClassBalancedSampler",
    "ClassShareSampler",
    "InstanceSampler",
    "OverSampler",
    "ProgressiveSampler",
    "ReversedSampler",
    "Sampler",
    "SequentialSampler",
    "SquareRootSampler",
    "TrainingSampler",
    "UnderSampler",
]
