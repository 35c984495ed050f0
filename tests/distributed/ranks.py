"""Runs a function in several gloo processes and collects the results."""

import os
import socket
import warnings
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# Processes forked from one that has imported torch: importing it takes longer than most tests.
START_METHOD = "forkserver"
get_context(START_METHOD).set_forkserver_preload(["torch", "facelt.training.run"])


def run_ranks(function: Callable[..., Any], world: int, folder: Path, *arguments: Any) -> list[Any]:
    """Runs `function(*arguments)` on `world` ranks; returns the results in rank order or raises a rank's error."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    mp.start_processes(_rank, (function, world, port, str(folder), arguments), world, start_method=START_METHOD)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def _rank(rank: int, function: Callable[..., Any], world: int, port: int, folder: str, arguments: tuple) -> None:
    warnings.simplefilter("error", FutureWarning)
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world)
    try:
        torch.save(function(*arguments), Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()
