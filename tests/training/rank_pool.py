"""Pool of processes that run functions as ranks of a gloo group; started once, since starting takes seconds."""

import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch.distributed as dist

from tests.distributed.ranks import START_METHOD


class RankPool:
    """Up to `ranks` processes, each started on first use; a context manager."""

    def __init__(self, ranks: int) -> None:
        context = get_context(START_METHOD)
        self._ends, theirs = zip(*(context.Pipe() for _ in range(ranks)), strict=True)
        self._processes = [context.Process(target=_serve, args=(end,), daemon=True) for end in theirs]
        self._started = 0

    def __enter__(self) -> "RankPool":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes[: self._started]:
            # Idle, and slow to take leave.
            process.kill()
            process.join()

    def run(self, function: Callable[..., Any], world: int, *arguments: Any, group: bool = True) -> list[Any]:
        """Runs `function(*arguments)` on `world` ranks; returns the results in rank order and raises a rank's error.

        With `group=False` no process group is created, as in processes that torchrun has just started.
        """
        for process in self._processes[self._started : world]:
            process.start()
        self._started = max(self._started, world)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        for rank in range(world):
            self._ends[rank].send((function, rank, world, port, arguments, group))
        answers = [self._ends[rank].recv() for rank in range(world)]
        errors = [text for text, _ in answers if text]
        if errors:
            raise AssertionError("\n".join(errors))
        return [result for _, result in answers]


def _serve(end: Connection) -> None:
    import torch

    from tests.training.thin import make_thin

    make_thin()
    torch.set_num_threads(1)
    while True:
        function, rank, world, port, arguments, group = end.recv()
        started = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "WORLD_SIZE": world}
        os.environ.update({name: str(value) for name, value in started.items()})
        if group:
            dist.init_process_group("gloo")
        try:
            end.send(("", function(*arguments)))
        except Exception:
            end.send((traceback.format_exc(), None))
        finally:
            if group:
                dist.destroy_process_group()
