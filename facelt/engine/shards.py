"""The tensors of all ranks as files: each rank writes its share, and any other number of ranks reads them back.

The files are safetensors, as torch.distributed.checkpoint cuts them: nothing in them can be run.
"""

import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from facelt.engine.ranks import is_lost
from facelt.errors import UserError
from facelt.parallel import ClassRange, is_split, rank, world
from facelt.whole_files import sha256_of, sync

SHARDS = "*.safetensors"

Tensors = Mapping[str, torch.Tensor]
# The digests of this rank's share of the files, by name, once these are on disk.
Digests = Future[dict[str, str]]


class ShardWriter:
    """Writes tensors into a folder: at once, or from a copy in host memory while the caller goes on."""

    def __init__(self, in_background: bool, timeout: timedelta) -> None:
        self._thread = ThreadPoolExecutor(1, "digests") if in_background else None
        # Two threads of a rank may not talk over one group: who of the other ranks hears whom would be left to chance.
        self._group = dist.new_group(backend="gloo", timeout=timeout) if in_background and is_split() else None

    def write(self, folder: Path, tensors: Tensors, split: Mapping[str, ClassRange]) -> Digests:
        """Every rank hands in its tensors; `split` names those that are its rows of all classes.

        The tensors may change as soon as this returns. Errors are the future's.
        """
        packed = sharded({name: value.contiguous() for name, value in tensors.items()}, split)
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        settings = {"storage_writer": writer, "process_group": self._group, "no_dist": not dist.is_initialized()}
        _silence()
        if self._thread is not None:
            written = dcp.async_save(packed, **settings)
            return self._thread.submit(lambda: (written.result(), _digests(folder))[1])
        done = Future()
        try:
            dcp.save(packed, **settings)
            done.set_result(_digests(folder))
        except (Exception, CheckpointException) as error:
            done.set_exception(error)
        return done


def read_shards(folder: Path, tensors: Tensors, split: Mapping[str, ClassRange]) -> None:
    """Fills the tensors. Raises UserError where the files hold others."""
    _silence()
    with as_user_errors(folder, "does not belong to this run"):
        reader = HuggingFaceStorageReader(str(folder))
        dcp.load(sharded(tensors, split), storage_reader=reader, no_dist=not dist.is_initialized())


def sharded(tensors: Tensors, split: Mapping[str, ClassRange]) -> dict[str, torch.Tensor]:
    """The same tensors, those with rows of classes as shares of whole ones; no copy."""
    if not is_split():
        return {name: value.detach() for name, value in tensors.items()}
    mesh = init_device_mesh(next(iter(tensors.values())).device.type, (world(),))

    def whole(value: torch.Tensor, classes: ClassRange) -> DTensor:
        shape = (classes.total, *value.shape[1:])
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(value, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)

    return {
        name: whole(value.detach(), split[name]) if name in split else value.detach() for name, value in tensors.items()
    }


@contextmanager
def as_user_errors(path: Path, meaning: str) -> Iterator[None]:
    """torch's errors as one line; a disk that refuses and a rank that is gone are told from tensors that do not fit."""
    try:
        yield
    except (CheckpointException, RuntimeError, ValueError, OSError, KeyError) as error:
        cause = next((one for one, _ in error.failures.values()), error) if hasattr(error, "failures") else error
        if is_lost(cause) or isinstance(cause, KeyboardInterrupt | SystemExit):
            raise cause from None
        reason = " ".join(str(cause).split())[:200] or type(cause).__name__
        if isinstance(cause, OSError):
            raise UserError(f"{path}: cannot be written or read ({cause.strerror or reason})") from None
        raise UserError(f"{path}: {meaning} ({reason})") from None


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of this rank's share of the files; they are on disk after this."""
    names = sorted(path.name for path in folder.glob(SHARDS))[rank() :: world()]
    for name in names:
        sync(folder / name)
    return {name: sha256_of(folder / name) for name in names}


def _silence() -> None:
    """One process is no mistake worth a warning."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
