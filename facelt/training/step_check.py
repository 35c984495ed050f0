"""Non-finite check of a step: buffers that it restores on the device, and the report that the host reads later.

N values of all buffers of one type, F figures of a step.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from facelt.data.batch import Batch
from facelt.methods.base import StepContext


class _SnapshotPart(NamedTuple):
    """The buffers of one type, with room for their values before and after a step and views of both by buffer."""

    buffers: list[torch.Tensor]
    before_N: torch.Tensor
    after_N: torch.Tensor
    before: list[torch.Tensor]
    after: list[torch.Tensor]


class BufferSnapshot:
    """The buffers of a network as they were before a step, such as the running statistics of batch norm.

    `take` copies them, and `restore` returns to the copy if the step is not finite: a few kernels each, for which the
    host does not wait.
    """

    def __init__(self, network: nn.Module) -> None:
        by_type = defaultdict(list)
        for buffer in network.buffers():
            by_type[buffer.dtype].append(buffer)
        self._parts = [_snapshot_part(buffers) for buffers in by_type.values()]

    @torch.no_grad()
    def take(self) -> None:
        """Copies the buffers."""
        for part in self._parts:
            torch._foreach_copy_(part.before, part.buffers)

    @torch.no_grad()
    def restore(self, is_finite: torch.Tensor) -> None:
        """Returns to the copy, unless the bool scalar `is_finite` on the device is True."""
        for part in self._parts:
            torch._foreach_copy_(part.after, part.buffers)
            torch.where(is_finite, part.after_N, part.before_N, out=part.after_N)
            torch._foreach_copy_(part.buffers, part.after)


def _snapshot_part(buffers: list[torch.Tensor]) -> _SnapshotPart:
    sizes = [buffer.numel() for buffer in buffers]
    before_N, after_N = (buffers[0].new_empty(sum(sizes)) for _ in range(2))
    before, after = (
        [part.view(buffer.shape) for part, buffer in zip(value_N.split(sizes), buffers, strict=True)]
        for value_N in (before_N, after_N)
    )
    return _SnapshotPart(buffers, before_N, after_N, before, after)


def find_inf(loss: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    """Returns 1 if the loss or the norm of its gradient is not finite, else 0, a float32 scalar on the device."""
    return (~(loss.isfinite() & norm.isfinite())).float()


class HostCopy:
    """A copy of numbers on the host, for which nothing waits until it is read."""

    def __init__(self, value_F: torch.Tensor) -> None:
        # Without blocking torch copies from a GPU to page-locked memory.
        self._value_F = value_F.to("cpu", non_blocking=True)
        self._event = torch.cuda.Event() if value_F.device.type == "cuda" else None
        if self._event is not None:
            self._event.record()

    def read(self) -> list[float]:
        """Returns the numbers; waits until the device has copied them."""
        if self._event is not None:
            self._event.synchronize()
        return self._value_F.tolist()


@dataclass(frozen=True)
class StepReport:
    """A step whose loss, gradient norm and check are on their way to the host.

    `index_B` are the dataset indices of this rank's images in each batch. `parts` names the figures for the log, which
    only a step that is logged has.
    """

    context: StepContext
    lr: float
    index_B: tuple[torch.Tensor, ...]
    is_logged: bool
    parts: tuple[str, ...]
    figures: HostCopy

    @classmethod
    def send(
        cls,
        context: StepContext,
        batches: Sequence[Batch],
        lr: float,
        figures: Sequence[torch.Tensor],
        parts: Mapping[str, torch.Tensor] | None,
    ) -> "StepReport":
        """Starts the copy of the check, the loss and the norm, and of the parts of the loss if it is logged."""
        named = parts or {}
        figure_F = torch.stack([value.detach().reshape(()).double() for value in (*figures, *named.values())])
        index_B = tuple(batch.index_B for batch in batches)
        return cls(context, lr, index_B, parts is not None, tuple(named), HostCopy(figure_F))
