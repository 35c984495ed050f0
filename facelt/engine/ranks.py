"""The processes torchrun starts: their group, what the first of them does for all, and what they tell each other.

W ranks.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from facelt.data.batch import BadImage, Batch
from facelt.engine.device import resolve_device
from facelt.engine.meeting import meeting_place
from facelt.engine.stopping import Stopped, is_asked
from facelt.errors import UserError
from facelt.parallel import Shares, gather_ranks, is_split, rank

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
    if not is_split():
        return [text]
    shares = Shares.agree(len(text.encode()), CPU)
    if not shares.total:
        return [""] * len(shares.sizes)
    letters = torch.tensor(list(text.encode()), dtype=torch.uint8)
    return [bytes(part.tolist()).decode() for part in shares.gather(letters).split(shares.sizes)]


def agree(batches: Sequence[Batch]) -> tuple[list[list[int]], tuple[BadImage, ...]]:
    """Of one step: how many images each rank has of each batch, [W][batches], and the bad images of all ranks.

    Raises Stopped on all ranks where one of them was asked to stop.
    """
    bad = tuple(image for batch in batches for image in batch.bad)
    sizes = [len(batch) for batch in batches]
    table = gather_ranks(torch.tensor([*sizes, len(bad), is_asked()])).tolist()
    if any(row[-1] for row in table):
        raise Stopped
    if is_split() and any(row[-2] for row in table):
        bad = tuple(BadImage(*image) for told in gather_text(json.dumps(bad)) for image in json.loads(told))
    return [row[:-2] for row in table], bad
