"""One rank's part of what a sampler lists.

Shapes: T draws of an epoch.
"""

from collections.abc import Iterator

from facelt.data.batch import Draws
from facelt.data.samplers import Sampler


class RankShare:
    """Rank r of `world` gets a contiguous share of each global batch, empty where a last batch has fewer images than
    there are ranks, so that all ranks make the same number of steps.
    """

    def __init__(self, sampler: Sampler, rank: int, world: int) -> None:
        self.sampler, self.rank, self.world = sampler, rank, world

    @property
    def largest(self) -> int:
        """Images of the largest share of a batch."""
        return -(-self.sampler.batch // self.world)

    def steps(self, epoch: int, start_step: int) -> Iterator[Draws]:
        """The draws of each step of an epoch, from `start_step` on."""
        index_T, seed_T = self.sampler.draws(epoch)
        for step in range(start_step, self.sampler.steps_per_epoch):
            first = step * self.sampler.batch
            size = min(self.sampler.batch, len(index_T) - first)
            share = slice(first + size * self.rank // self.world, first + size * (self.rank + 1) // self.world)
            yield Draws(index_T[share], seed_T[share])
