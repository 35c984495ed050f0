"""Where the processes of one start of torchrun meet: a corner of its store that earlier starts never touched.

Processes of torchrun that each do a share by themselves and talk only to begin and to end.

The device a configuration asks for, without a silent fallback.

A run that is asked to stop by a signal stops between two steps, with its state saved.

The processes torchrun starts: their group, what the first of them does for all, and what they tell each other.

W ranks.
"""

import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from facelt.distributed.comm import BatchSplit, is_distributed, rank
from facelt.errors import UserError

ROUND = "facelt/round"
COMPLETE = "complete"
PAUSE_S = 0.05


def meeting_place(timeout: timedelta) -> tuple[dist.Store, int, int]:
    """torchrun's store of notes, this process's rank, and how many there are.

    The store outlives the processes that torchrun starts again, on one machine or on several, and they must not read
    what their predecessors left. torchrun numbers the starts of each machine by itself, so the number of a start cannot
    name the corner: rank 0 draws a name, and everyone else joins it. Raises RuntimeError after `timeout`.
    """
    notes, place, processes = next(rendezvous("env://", timeout=timeout))
    name = _open(notes, processes, timeout) if place == 0 else _join(notes, place, timeout)
    return dist.PrefixStore(name, notes), place, processes


def _open(notes: dist.Store, processes: int, timeout: timedelta) -> str:
    """A new corner, once all have joined it."""
    name = f"facelt/{uuid.uuid4().hex}"
    notes.set(ROUND, name)
    if processes > 1:
        notes.wait([f"{name}/{place}" for place in range(1, processes)], timeout)
    notes.set(f"{name}/{COMPLETE}", "")
    return name


def _join(notes: dist.Store, place: int, timeout: timedelta) -> str:
    """The corner rank 0 opened; one that this rank's predecessor joined, or nobody completes, is an old one."""
    end = time.monotonic() + timeout.total_seconds()
    seen = joined = ""
    while time.monotonic() < end:
        name = notes.get(ROUND).decode()
        if name != seen:
            seen, joined = name, name if notes.add(f"{name}/{place}", 1) == 1 else ""
        if joined and notes.check([f"{joined}/{COMPLETE}"]):
            return joined
        time.sleep(PAUSE_S)
    raise dist.DistStoreError(f"rank 0 opened no meeting place within {timeout}")


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


def resolve_device(name: str) -> torch.device:
    """The device of this process; under torchrun each process of a machine takes a GPU of its own.

    Raises UserError on another name than cpu or cuda, and when a GPU is asked for and there is none.
    """
    if name not in ("cpu", "cuda"):
        raise UserError(f"device: {name!r} is not allowed; allowed: cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda is asked for, but no GPU is available here; set device=cpu to run without one")
    place = os.environ.get("LOCAL_RANK")
    if name == "cpu" or place is None:
        return torch.device(name)
    if int(place) >= torch.cuda.device_count():
        raise UserError(
            f"device: this machine has {torch.cuda.device_count()} GPUs, too few for the process numbered {place} from "
            "0; give torchrun --nproc_per_node as many as there are"
        )
    device = torch.device(name, int(place))
    torch.cuda.set_device(device)
    return device


SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """Raised by all ranks at the same step once one of them was asked to stop."""


_asked = threading.Event()


def is_asked() -> bool:
    """Whether this process was asked to stop."""
    return _asked.is_set()


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM and SIGINT are noted here instead of ending the process; a second one ends it as usual."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def note(number: int, _) -> None:
        _asked.set()
        signal.signal(number, before[number])

    for number in SIGNALS:
        signal.signal(number, note)
    try:
        yield
    finally:
        _asked.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


CPU = torch.device("cpu")


@contextmanager
def process_group(device_name: str, timeout: timedelta) -> Iterator[torch.device]:
    """Joins the other processes where torchrun started this one; yields the device this one computes on.

    GPUs talk over NCCL, everything on the CPU over gloo. Raises UserError where the device is absent, and where another
    process stops or does not answer within `timeout`: a rank is never long alone, what it does by itself between two
    exchanges is one batch or one file.
    """
    device = resolve_device(device_name)
    if not dist.is_torchelastic_launched():
        yield device
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        notes, place, processes = meeting_place(timeout)
        dist.init_process_group(backend, timeout=timeout, store=notes, rank=place, world_size=processes)
        yield device
    except RuntimeError as error:
        if not is_lost(error):
            raise
        raise UserError(
            f"rank {os.environ['RANK']} stops because another process stopped or did not answer within "
            f"{timeout / timedelta(minutes=1):g} minutes (timeout_minutes): {' '.join(str(error).split())[:160]}; what "
            "that process said last is the cause"
        ) from None
    # After an error the others may be gone: the end of the process is the only goodbye that cannot hang.
    dist.destroy_process_group()


def is_lost(error: BaseException) -> bool:
    """Whether an error says that another rank went away or is silent; gloo's have no type of their own."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def on_first_rank(action: Callable[[], None]) -> None:
    """Rank 0 acts while the others wait. Its UserError ends all of them."""
    mistake = ""
    if rank() == 0:
        try:
            action()
        except UserError as error:
            mistake = str(error)
    told = gather_text(mistake)[0]
    if told:
        raise UserError(told)


def gather_text(text: str) -> list[str]:
    """What each rank says, [W]."""
    if not is_distributed():
        return [text]
    shares = BatchSplit.gather_sizes(len(text.encode()), CPU)
    if not shares.total:
        return [""] * len(shares.sizes)
    letters = torch.tensor(list(text.encode()), dtype=torch.uint8)
    return [bytes(part.tolist()).decode() for part in shares.gather(letters).split(shares.sizes)]
