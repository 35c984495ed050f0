"""Process group of a torchrun launch: device, graceful shutdown, and rank-0 actions. W ranks."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from facelt.distributed.comm import BatchSplit, is_distributed, rank
from facelt.distributed.rendezvous import rendezvous_store
from facelt.errors import UserError

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def process_group(device_name: str, timeout: timedelta) -> Iterator[torch.device]:
    """Initializes the process group of a torchrun launch, if there is one; yields this process's device.

    GPU tensors use NCCL, CPU tensors gloo. Raises UserError if the device is not available, and if another process
    stops or does not respond within `timeout`. Between two collectives a rank handles at most one batch or one file.
    """
    device = resolve_device(device_name)
    if not dist.is_torchelastic_launched():
        yield device
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        store, own_rank, world = rendezvous_store(timeout)
        dist.init_process_group(backend, timeout=timeout, store=store, rank=own_rank, world_size=world)
        yield device
    except RuntimeError as error:
        if not is_peer_failure(error):
            raise
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"rank {os.environ['RANK']}: another process failed or did not respond within "
            f"{timeout / timedelta(minutes=1):g} minutes (timeout_minutes): {reason}; see that process's last message "
            "for the cause"
        ) from None
    # Not after an error: destroy_process_group() can hang if peers are gone.
    dist.destroy_process_group()


def resolve_device(name: str) -> torch.device:
    """Returns the device of this process: under torchrun each process of a machine gets one GPU.

    Raises UserError for names other than cpu and cuda, and if there is no GPU for this process.
    """
    if name not in ("cpu", "cuda"):
        raise UserError(f"device: {name!r} is not allowed; allowed: cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda was requested, but no GPU is available; set device=cpu to run without one")
    local_rank = os.environ.get("LOCAL_RANK")
    if name == "cpu" or local_rank is None:
        return torch.device(name)
    gpus = torch.cuda.device_count()
    if int(local_rank) >= gpus:
        raise UserError(
            f"device: no GPU for local rank {local_rank}, this machine has {gpus}; start torchrun with "
            f"--nproc_per_node={gpus} or fewer"
        )
    device = torch.device(name, int(local_rank))
    torch.cuda.set_device(device)
    return device


def is_peer_failure(error: BaseException) -> bool:
    """Returns whether an error means that another rank exited or timed out; gloo's errors have no class for this."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


_received: list[int] = []


def received_signal() -> int:
    """Returns the number of the stop signal that this process received inside `graceful_shutdown`; 0 without one."""
    return _received[0] if _received else 0


@contextmanager
def graceful_shutdown() -> Iterator[None]:
    """Records the first SIGTERM or SIGINT for `received_signal`; a second one ends the process as usual."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in SIGNALS}

    def handle(number: int, _) -> None:
        _received.append(number)
        signal.signal(number, previous[number])

    for number in SIGNALS:
        signal.signal(number, handle)
    try:
        yield
    finally:
        _received.clear()
        for number, handler in previous.items():
            signal.signal(number, handler)


def run_on_rank0(action: Callable[[], None]) -> None:
    """Runs `action` on rank 0 while the other ranks wait; its UserError is raised on all ranks."""
    message = ""
    if rank() == 0:
        try:
            action()
        except UserError as error:
            message = str(error)
    message = all_gather_str(message)[0]
    if message:
        raise UserError(message)


def all_gather_str(text: str) -> list[str]:
    """Returns the string of every rank, [W]."""
    if not is_distributed():
        return [text]
    split = BatchSplit.gather_sizes(len(text.encode()))
    if not split.total:
        return [""] * len(split.sizes)
    byte_b = torch.tensor(list(text.encode()), dtype=torch.uint8)
    return [bytes(part.tolist()).decode() for part in split.gather(byte_b).split(split.sizes)]
