"""Memory that a process shares with its workers, lent out batch by batch and taken back by itself.

Shapes: S slots, B images of a batch, H height, W width.
"""

import math
import weakref
from collections import deque

import torch

from facelt.errors import UserError

LENT = 2
"""What a loop needs: the batch it looks at, and the one before, which it lets go of only when it has the next."""


class Slots:
    """Places for one batch each, uint8 [S,B,H,W,3], shared once and used again and again: `tasks` + LENT of them.

    Sharing anew for each batch means page faults on both sides and a file handle handed over for each tensor, which
    cost a third of the decoding of a face. A slot is `take`n for a task; once a worker has filled it, it is lent as a
    tensor, and is free again when nothing refers to that tensor's memory any more. So many tasks can be taken at once
    whatever is lent.

    Raises UserError where there is too little shared memory.
    """

    def __init__(self, tasks: int, batch: int, image_size: tuple[int, int]) -> None:
        shape = (tasks + LENT, batch, *image_size, 3)
        try:
            self.image_SBHW3 = torch.empty(shape, dtype=torch.uint8).share_memory_()
        except RuntimeError as error:
            raise UserError(
                f"workers: they need {math.prod(shape) / 1e6:.0f} MB of shared memory for {shape[0]} x {batch} images: "
                f"the machine does not give it ({' '.join(str(error).split())}); ask for fewer workers or smaller "
                "batches, or give /dev/shm more room"
            ) from None
        self._view_SBHW3 = self.image_SBHW3.numpy()
        self._free: deque[int] = deque(range(shape[0]))
        self._taken: set[int] = set()

    def take(self) -> int:
        """A free slot for a task."""
        slot = self._free.popleft()
        self._taken.add(slot)
        return slot

    def receive(self, slot: int) -> torch.Tensor:
        """The images [B,H,W,3] of a task that is done, the caller's for good.

        It is the slot itself; a copy only where the caller has not let go of LENT earlier ones.
        """
        self._taken.remove(slot)
        if len(self._view_SBHW3) - len(self._free) - len(self._taken) > LENT:
            self._free.append(slot)
            return self.image_SBHW3[slot].clone()
        # torch keeps this array alive as long as any tensor looks at its memory.
        lent_BHW3 = self._view_SBHW3[slot]
        weakref.finalize(lent_BHW3, self._free.append, slot)
        return torch.from_numpy(lent_BHW3)

    def abandon(self) -> None:
        """Forget the tasks that were given up; no worker may still be at one."""
        self._free.extend(self._taken)
        self._taken.clear()
