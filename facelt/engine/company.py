"""Processes of torchrun that each do a share by themselves and talk only to begin and to end."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

from facelt.engine.meeting import meeting_place
from facelt.errors import UserError

# What the first one does before the others may begin is to write a few small files.
TIMEOUT = timedelta(minutes=10)
# Shares are of one length, but machines are not equally fast.
LONGEST = timedelta(days=7)


@dataclass(frozen=True)
class Company:
    """This process's place in it. No process group is formed: a model made now is whole."""

    rank: int = 0
    world: int = 1
    notes: dist.Store | None = None

    @classmethod
    def of_torchrun(cls) -> "Company":
        """The processes torchrun started; alone without it."""
        if not dist.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
            return cls()
        notes, rank, world = meeting_place(TIMEOUT)
        return cls(rank, world, notes)

    def share(self, items: int, batch: int) -> range | None:
        """This process's part of so many items, in whole batches; None when it is alone."""
        if self.world == 1:
            return None
        steps = -(-items // batch)
        first, last = (steps * place // self.world * batch for place in (self.rank, self.rank + 1))
        return range(min(first, items), min(last, items))

    def wait_for_turn(self) -> None:
        """Everyone but the first waits until that one has begun."""
        if self.rank:
            self._wait("begun", TIMEOUT)

    def begin(self) -> None:
        """The first one lets the others go on."""
        if self.notes and not self.rank:
            self.notes.set("begun", "yes")

    def finish(self, action: Callable[[], object]) -> None:
        """The first one acts once everyone is here; the others need not wait for it."""
        if self.notes and self.rank:
            self.notes.set(f"done {self.rank}", "yes")
            return
        for other in range(1, self.world):
            self._wait(f"done {other}", LONGEST)
        action()

    def _wait(self, note: str, longest: timedelta) -> None:
        try:
            self.notes.wait([note], longest)
        except dist.DistError as error:
            raise UserError(f"rank {self.rank} waited too long or in vain for another process ({error})") from None
