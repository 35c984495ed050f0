"""The images in order, for all that does not train.

Shapes: M images that are listed.
"""

import numpy as np

from facelt.data.samplers.sampler import Sampler


class SequentialSampler(Sampler):
    """Every image once, in order, the last partial batch kept: for evaluation, embedding and memory passes."""

    def __init__(self, count: int, batch: int, members: np.ndarray | None = None) -> None:
        self._member_M = np.arange(count) if members is None else np.asarray(members, dtype=np.int64)
        super().__init__(batch, -(-len(self._member_M) // batch), seed=0)

    def epoch(self, epoch: int) -> np.ndarray:
        return self._member_M
