"""Checkpoints of a stage: atomic, sharded over the ranks, readable on any number of ranks.

step-00000120/state.json               everything but the tensors, and the SHA-256 of the other files
step-00000120/shard-*.safetensors      the tensors, one shard per rank, written by torch.distributed.checkpoint (DCP)

Reading a checkpoint executes no code.
"""

import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from facelt.distributed.class_shards import ClassRange
from facelt.distributed.comm import all_reduce, is_distributed, rank, world_size
from facelt.distributed.launch import all_gather_str, is_peer_failure, run_on_rank0
from facelt.errors import UserError
from recordio_tools.atomic_io import sha256_of, sync, write_text
from recordio_tools.bounded_io import read_json

_SCHEMA = "facelt.checkpoint/2"
_STATE = "state.json"
_SHARDS = "*.safetensors"
_NAME = re.compile(r"step-\d{8,}")


def checkpoint_name(step: int) -> str:
    """Returns the name of the folder of a stage's checkpoint after `step` steps."""
    return f"step-{step:08d}"


def checkpoint_step(path: Path) -> int:
    """Returns the number of steps after which the checkpoint in this folder was saved; 0 for other folders."""
    return int(path.name.removeprefix("step-")) if _NAME.fullmatch(path.name) else 0


Tensors = Mapping[str, torch.Tensor]
ClassRanges = Mapping[str, ClassRange]
Metadata = Mapping[str, Any]
# SHA-256 of this rank's files by name, available once they are on disk.
Digests = Future[dict[str, str]]


@dataclass(frozen=True)
class _PendingSave:
    """A save in progress: final path, temporary path, metadata, and this rank's digests."""

    path: Path
    temporary: Path
    metadata: Metadata
    digests: Digests


class Checkpoints:
    """The checkpoints of a stage; the newest `keep` are kept.

    With `in_background` a save runs while training continues. Call `commit` on all ranks to publish it once every rank
    has written its shard.
    """

    def __init__(
        self, folder: Path, keep: int, *, in_background: bool = False, timeout: timedelta = timedelta(minutes=10)
    ) -> None:
        self.folder = folder
        self.keep = keep
        self._writer = _ShardWriter(in_background, timeout)
        self._in_background = in_background
        self._pending: _PendingSave | None = None

    def paths(self) -> list[Path]:
        """Returns the complete checkpoints, newest first; any of them may still be damaged."""
        names = [path for path in self.folder.glob("step-*") if _NAME.fullmatch(path.name)]
        return sorted(names, key=checkpoint_step, reverse=True)

    def save(self, step: int, tensors: Tensors, class_ranges: ClassRanges, metadata: Metadata) -> None:
        """Saves the tensors of all ranks; `class_ranges` names those that are sharded by class.

        In the background the checkpoint is published by a later `commit`. Tensors and metadata may change as soon as
        this returns. Raises UserError if this save or the pending one fails; earlier checkpoints stay.
        """
        self.commit()
        path = self.folder / checkpoint_name(step)
        temporary = self.folder / f".{path.name}.new"
        run_on_rank0(lambda: _make_empty(temporary))
        digests = self._writer.write(temporary, tensors, class_ranges)
        self._pending = _PendingSave(path, temporary, deepcopy(dict(metadata)), digests)
        if not self._in_background:
            self.commit()

    def commit(self, wait: bool = True) -> None:
        """Publishes the pending save; without `wait` only if all ranks have written their shards.

        All ranks call this at the same step. Raises UserError if writing failed.
        """
        pending = self._pending
        if pending is None or not (wait or _all_ranks(pending.digests.done())):
            return
        self._pending = None
        try:
            digests = _gather_digests(pending)
            run_on_rank0(lambda: self._publish(pending, digests))
        finally:
            if rank() == 0:
                shutil.rmtree(pending.temporary, ignore_errors=True)

    def restore(
        self, allocate: Callable[[Metadata], Tensors], class_ranges: ClassRanges, warn: Callable[[str], None]
    ) -> tuple[dict[str, Any], Tensors] | None:
        """Fills the tensors that `allocate(metadata)` returns from the newest usable checkpoint; returns both.

        Returns None if there is no checkpoint. Damaged ones are reported to `warn`, removed and skipped. Raises
        UserError if all are damaged, and if the checkpoint does not fit the tensors.
        """
        # Left by a killed process.
        run_on_rank0(lambda: _remove(self.folder.glob(".step-*.new")))
        damaged = []
        for path in self.paths():
            try:
                metadata = _read_metadata(path)
            except _DamagedError as error:
                warn(f"{path}: {error}; using the previous checkpoint")
                damaged.append(path)
                continue
            try:
                tensors = allocate(metadata)
            except UserError as error:
                raise UserError(f"{path}: {error}") from None
            _read_shards(path, tensors, class_ranges)
            run_on_rank0(lambda: _remove(damaged))
            return metadata, tensors
        if damaged:
            raise UserError(f"{self.folder}: no usable checkpoint; remove this folder to restart the stage")
        return None

    def remove(self) -> None:
        """Removes all checkpoints of the stage."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _publish(self, pending: _PendingSave, digests: dict[str, str]) -> None:
        body = json.dumps({"schema": _SCHEMA, **pending.metadata, "files": digests}, sort_keys=True)
        state = {"sha256": hashlib.sha256(body.encode()).hexdigest(), "state": body}
        write_text(pending.temporary / _STATE, json.dumps(state))
        path = pending.path
        try:
            sync(pending.temporary)
            # A checkpoint of this step exists if the end of an epoch is repeated. It is moved away as a whole, and the
            # one before it stays meanwhile.
            replaced = path.with_name(f".{path.name}.old.new")
            if path.exists():
                path.rename(replaced)
            pending.temporary.rename(path)
            sync(self.folder)
            _remove([replaced])
        except OSError as error:
            raise UserError(f"{path}: cannot write the checkpoint ({error.strerror})") from error
        _remove(self.paths()[self.keep :])


class _ShardWriter:
    """Writes this rank's shard, at once or in the background from a copy in host memory."""

    def __init__(self, in_background: bool, timeout: timedelta) -> None:
        self._thread = ThreadPoolExecutor(1, "digests") if in_background else None
        # Two threads of a rank must not share a process group: their collectives would mix.
        self._group = dist.new_group(backend="gloo", timeout=timeout) if in_background and is_distributed() else None

    def write(self, folder: Path, tensors: Tensors, class_ranges: ClassRanges) -> Digests:
        """Starts writing; the tensors may change as soon as this returns. Errors are the future's."""
        contiguous = _to_dtensors({name: value.contiguous() for name, value in tensors.items()}, class_ranges)
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        _silence_dcp()
        options = {"storage_writer": writer, "process_group": self._group, "no_dist": not dist.is_initialized()}
        if self._thread is not None:
            written = dcp.async_save(contiguous, **options)
            return self._thread.submit(lambda: (written.result(), _digests(folder))[1])
        digests = Future()
        try:
            dcp.save(contiguous, **options)
            digests.set_result(_digests(folder))
        except (Exception, CheckpointException) as error:
            digests.set_exception(error)
        return digests


def _to_dtensors(tensors: Tensors, class_ranges: ClassRanges) -> dict[str, torch.Tensor]:
    """Returns the tensors with the class-sharded ones as DTensors; nothing is copied."""
    if not is_distributed():
        return {name: value.detach() for name, value in tensors.items()}
    mesh = init_device_mesh(next(iter(tensors.values())).device.type, (world_size(),))

    def to_dtensor(value: torch.Tensor, classes: ClassRange) -> DTensor:
        shape = (classes.total, *value.shape[1:])
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(value, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)

    return {
        name: to_dtensor(value.detach(), class_ranges[name]) if name in class_ranges else value.detach()
        for name, value in tensors.items()
    }


@contextmanager
def _translate_errors(path: Path, problem: str) -> Iterator[None]:
    """Converts DCP errors to one-line UserErrors; I/O errors are reported as such, errors of lost ranks re-raised."""
    try:
        yield
    except (CheckpointException, RuntimeError, ValueError, OSError, KeyError) as error:
        # A CheckpointException holds each rank's (error, traceback).
        cause = next((cause for cause, _ in error.failures.values()), error) if hasattr(error, "failures") else error
        if is_peer_failure(cause) or isinstance(cause, KeyboardInterrupt | SystemExit):
            raise cause from None
        reason = " ".join(str(cause).split())[:200] or type(cause).__name__
        if isinstance(cause, OSError):
            raise UserError(f"{path}: cannot read or write the checkpoint ({cause.strerror or reason})") from None
        raise UserError(f"{path}: {problem} ({reason})") from None


def _read_shards(folder: Path, tensors: Tensors, class_ranges: ClassRanges) -> None:
    """Fills the tensors in place. Raises UserError if the files hold other tensors."""
    _silence_dcp()
    with _translate_errors(folder, "checkpoint mismatch"):
        reader = HuggingFaceStorageReader(str(folder))
        dcp.load(_to_dtensors(tensors, class_ranges), storage_reader=reader, no_dist=not dist.is_initialized())


def _silence_dcp() -> None:
    """Silences DCP's warning about a single process."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")


def _digests(folder: Path) -> dict[str, str]:
    """Syncs this rank's share of the files to disk; returns their SHA-256."""
    names = sorted(path.name for path in folder.glob(_SHARDS))[rank() :: world_size()]
    for name in names:
        sync(folder / name)
    return {name: sha256_of(folder / name) for name in names}


def _gather_digests(pending: _PendingSave) -> dict[str, str]:
    """Waits for the digests of all files. An error on one rank is raised as a UserError on all of them."""
    message, digests = "", {}
    try:
        with _translate_errors(pending.path, "cannot save the checkpoint"):
            digests = pending.digests.result()
    except UserError as error:
        message = str(error)
    by_rank = [json.loads(text) for text in all_gather_str(json.dumps([message, digests]))]
    if message := next((message for message, _ in by_rank if message), ""):
        raise UserError(message)
    return {name: digest for _, digests in by_rank for name, digest in digests.items()}


def _all_ranks(flag: bool) -> bool:
    return bool(all_reduce(torch.tensor(flag, dtype=torch.uint8), dist.ReduceOp.MIN))


class _DamagedError(Exception):
    """A checkpoint that cannot be used, with the reason."""


def _read_metadata(path: Path) -> dict[str, Any]:
    """Reads and verifies state.json and the digests, each rank some of the files. Raises _DamagedError on all ranks."""
    reason, metadata = "", {}
    try:
        outer = read_json(path / _STATE)
        if hashlib.sha256(outer["state"].encode()).hexdigest() != outer["sha256"]:
            raise ValueError(f"wrong digest of {_STATE}")
        metadata = json.loads(outer["state"])
        if metadata["schema"] != _SCHEMA:
            raise ValueError(f"schema {metadata['schema']!r}, this version reads {_SCHEMA!r}")
        for name in sorted(metadata["files"])[rank() :: world_size()]:
            if Path(name).name != name:
                raise ValueError(f"the file {name!r} lies outside its folder")
            if sha256_of(path / name) != metadata["files"][name]:
                raise ValueError(f"wrong digest of {name}")
        extra = {file.name for file in path.glob(_SHARDS)} - metadata["files"].keys()
        if extra:
            raise ValueError(f"unexpected file {min(extra)!r}")
    except Exception as error:  # a damaged file may break the parser anywhere
        reason = f"not a usable checkpoint ({' '.join(str(error).split())[:200] or type(error).__name__})"
    if reason := next((reason for reason in all_gather_str(reason) if reason), ""):
        raise _DamagedError(reason)
    return metadata


def _make_empty(folder: Path) -> None:
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot create the folder ({error.strerror})") from error


def _remove(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
