"""One update of a method from one global batch, in as many micro-batches as its memory asks for.

W ranks, k micro-batches, B images of all ranks.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist

from facelt.data.batch import Batch
from facelt.data.module import Preprocessing
from facelt.distributed.comm import all_reduce, rank
from facelt.distributed.ddp import has_enough_images, wrap_ddp
from facelt.methods.base import Inputs, Method, Progress
from facelt.training.optim import Optimisers

# How many images each rank has of each batch, [W][batches].
Sizes = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Gradient:
    """What a global batch gave: its mean loss, the length of this rank's gradient, whether these are finite on all
    ranks, the loss's parts, and what is to happen once the optimiser has moved.
    """

    loss: float
    norm: float
    is_finite: bool
    parts: Mapping[str, torch.Tensor]
    after: tuple[Callable[[], None], ...]


class Update:
    """Gradients of global batches, and the steps that follow from them.

    A global batch is dealt out like cards: its i-th image belongs to micro-batch i mod k, whichever rank holds it. So
    the micro-batches are the same sets of images on any number of ranks, and each rank's are of equal size but for one.
    """

    def __init__(
        self, method: Method, optimisers: Optimisers, preparation: Preprocessing, accumulate: int, device: torch.device
    ) -> None:
        self.method, self.optimisers, self.preparation = method, optimisers, preparation
        self.accumulate, self.device = accumulate, device
        self._replicas = wrap_ddp(method.network, device)
        self._statistics = list(method.network.buffers())
        self._before = [buffer.clone() for buffer in self._statistics]
        method.replicas = None if self._replicas is None else self._replicas.__call__

    def gradient(self, batches: Sequence[Batch], sizes: Sizes, progress: Progress) -> Gradient | None:
        """Leaves the gradient of the global batch's mean loss in the parameters; None where it has too few images.

        The mean over B is the micro-batches' means weighted by their shares of B. A micro-batch without enough images
        is left out on all ranks alike. The ranks' gradients are put together once, with the last micro-batch.
        """
        parts = [(part, part_sizes(sizes, part, self.accumulate)) for part in range(self.accumulate)]
        parts = [(part, count) for part, count in parts if has_enough_images(count, self.device)]
        if not parts:
            return None
        total = sum(sum(map(sum, count)) for _, count in parts)
        batches = tuple(batch.to(self.device) for batch in batches)
        torch._foreach_copy_(self._before, self._statistics)
        self.optimisers.zero_grad()
        loss, figures, after = torch.zeros((), device=self.device), Counter(), []
        for part, count in parts:
            weight = sum(map(sum, count)) / total
            with self._exchange(part == parts[-1][0]):
                output = self.method.step(self._inputs(batches, sizes, part), progress)
                (output.loss * weight).backward()
            loss = loss + output.loss.detach() * weight
            figures.update({name: value * weight for name, value in output.parts.items()})
            after.append(output.after)
        mean, norm = loss.item(), self.optimisers.gradient_norm().item()
        own = torch.tensor(math.isfinite(mean) and math.isfinite(norm), dtype=torch.uint8)
        return Gradient(mean, norm, bool(all_reduce(own, dist.ReduceOp.MIN)), figures, tuple(after))

    def discard(self) -> None:
        """Forgets a gradient, and what its images did to batch norm's running statistics."""
        torch._foreach_copy_(self._statistics, self._before)
        self.optimisers.zero_grad()

    def apply(self, gradient: Gradient, progress: Progress) -> float:
        """Moves the parameters; returns the head's learning rate."""
        rate = self.optimisers.step(progress)
        for after in gradient.after:
            after()
        return rate

    def _inputs(self, batches: Sequence[Batch], sizes: Sizes, part: int) -> list[Inputs]:
        """This rank's images of a micro-batch, prepared."""
        inputs = []
        for stream, batch in enumerate(batches):
            own = part_of_rank([row[stream] for row in sizes], rank(), part, self.accumulate)
            columns = {name: getattr(batch, name)[own] for name in ("image_BHW3", "label_B", "index_B", "seed_B")}
            piece = replace(batch, **columns)
            inputs.append(Inputs(self.preparation.for_training(piece), piece.label_B))
        return inputs

    def _exchange(self, now: bool):
        """Whether the ranks put their gradients together in this backward pass."""
        return nullcontext() if now or self._replicas is None else self._replicas.no_sync()


def part_of_rank(size_W: Sequence[int], place: int, part: int, parts: int) -> slice:
    """Where a rank's images of a micro-batch are among its own, given how many images each rank has."""
    return slice((part - sum(size_W[:place])) % parts, size_W[place], parts)


def part_sizes(sizes: Sizes, part: int, parts: int) -> list[list[int]]:
    """How many images each rank has of each batch's micro-batch, [W][batches]."""

    def size(stream: int, place: int) -> int:
        size_W = [row[stream] for row in sizes]
        return len(range(size_W[place])[part_of_rank(size_W, place, part, parts)])

    return [[size(stream, place) for stream in range(len(row))] for place, row in enumerate(sizes)]
