"""The tensors of all ranks as files: each rank writes its share, and any other number of ranks reads them back.

The files are safetensors, as torch.distributed.checkpoint cuts them: nothing in them can be run.

Where a stage stands: one folder a checkpoint, complete or not there, read back without running anything.

step-00000120/state.json               everything that is no tensor, and the digests of the files beside it
step-00000120/shard-*.safetensors      each rank's share of the tensors
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

SHARDS = "*.safetensors"

Tensors = Mapping[str, torch.Tensor]
# The digests of this rank's share of the files, by name, once these are on disk.
Digests = Future[dict[str, str]]


class ShardWriter:
    """Writes tensors into a folder: at once, or from a copy in host memory while the caller goes on."""

    def __init__(self, in_background: bool, timeout: timedelta) -> None:
        self._thread = ThreadPoolExecutor(1, "digests") if in_background else None
        # Two threads of a rank may not talk over one group: who of the other ranks hears whom would be left to chance.
        self._group = dist.new_group(backend="gloo", timeout=timeout) if in_background and is_distributed() else None

    def write(self, folder: Path, tensors: Tensors, split: Mapping[str, ClassRange]) -> Digests:
        """Every rank hands in its tensors; `split` names those that are its rows of all classes.

        The tensors may change as soon as this returns. Errors are the future's.
        """
        packed = to_dtensors({name: value.contiguous() for name, value in tensors.items()}, split)
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
    with translate_errors(folder, "does not belong to this run"):
        reader = HuggingFaceStorageReader(str(folder))
        dcp.load(to_dtensors(tensors, split), storage_reader=reader, no_dist=not dist.is_initialized())


def to_dtensors(tensors: Tensors, split: Mapping[str, ClassRange]) -> dict[str, torch.Tensor]:
    """The same tensors, those with rows of classes as shares of whole ones; no copy."""
    if not is_distributed():
        return {name: value.detach() for name, value in tensors.items()}
    mesh = init_device_mesh(next(iter(tensors.values())).device.type, (world_size(),))

    def whole(value: torch.Tensor, classes: ClassRange) -> DTensor:
        shape = (classes.total, *value.shape[1:])
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(value, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)

    return {
        name: whole(value.detach(), split[name]) if name in split else value.detach() for name, value in tensors.items()
    }


@contextmanager
def translate_errors(path: Path, meaning: str) -> Iterator[None]:
    """torch's errors as one line; a disk that refuses and a rank that is gone are told from tensors that do not fit."""
    try:
        yield
    except (CheckpointException, RuntimeError, ValueError, OSError, KeyError) as error:
        cause = next((one for one, _ in error.failures.values()), error) if hasattr(error, "failures") else error
        if is_peer_failure(cause) or isinstance(cause, KeyboardInterrupt | SystemExit):
            raise cause from None
        reason = " ".join(str(cause).split())[:200] or type(cause).__name__
        if isinstance(cause, OSError):
            raise UserError(f"{path}: cannot be written or read ({cause.strerror or reason})") from None
        raise UserError(f"{path}: {meaning} ({reason})") from None


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of this rank's share of the files; they are on disk after this."""
    names = sorted(path.name for path in folder.glob(SHARDS))[rank() :: world_size()]
    for name in names:
        sync(folder / name)
    return {name: sha256_of(folder / name) for name in names}


def _silence() -> None:
    """One process is no mistake worth a warning."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")


SCHEMA = "facelt.checkpoint/2"
STATE = "state.json"
_NAME = re.compile(r"step-\d{8,}")


@dataclass(frozen=True)
class _Save:
    """A save under way: the name it is to have, where it is written, what it says, and when it will be there."""

    path: Path
    temporary: Path
    facts: Mapping[str, Any]
    digests: Digests


class Checkpoints:
    """The checkpoints of a stage, the newest `keep` of them.

    Written in the background, one at a time, training goes on meanwhile; it has to come by with `settle`, because only
    when all ranks have written may a checkpoint take its name, and only there do all of them meet.
    """

    def __init__(
        self, folder: Path, keep: int, *, in_background: bool = False, timeout: timedelta = timedelta(minutes=10)
    ) -> None:
        self.folder = folder
        self.keep = keep
        self._in_background = in_background
        self._writer = ShardWriter(in_background, timeout)
        self._save: _Save | None = None

    def found(self) -> list[Path]:
        """Complete ones, the newest first; each may still be damaged."""
        names = [path for path in self.folder.glob("step-*") if _NAME.fullmatch(path.name)]
        return sorted(names, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)

    def save(self, step: int, tensors: Tensors, split: Mapping[str, ClassRange], facts: Mapping[str, Any]) -> None:
        """Every rank hands in its tensors; `split` names those that are its rows of all classes.

        The folder takes its name once everything is on disk; in the background, when `settle` finds it so. Tensors and
        facts may change as soon as this returns. Raises UserError when the disk refuses this save or the one before;
        the checkpoints there before stay.
        """
        self.settle()
        path = self.folder / f"step-{step:08d}"
        temporary = self.folder / f".{path.name}.new"
        run_on_rank0(lambda: self._begin(temporary))
        self._save = _Save(path, temporary, deepcopy(dict(facts)), self._writer.write(temporary, tensors, split))
        if not self._in_background:
            self.settle()

    def settle(self, wait: bool = True) -> None:
        """Gives the save under way its name; without `wait` only if all ranks have written their share.

        All ranks call this at the same place. Raises UserError when the disk refused.
        """
        save = self._save
        if save is None or not (wait or _on_all_ranks(save.digests.done())):
            return
        self._save = None
        try:
            digests = _agreed(save)
            run_on_rank0(lambda: self._complete(save.temporary, save.path, {**save.facts, "files": digests}))
        finally:
            if rank() == 0:
                shutil.rmtree(save.temporary, ignore_errors=True)

    def restore(
        self,
        targets: Callable[[Mapping[str, Any]], Tensors],
        split: Mapping[str, ClassRange],
        tell: Callable[[str], None],
    ) -> tuple[dict[str, Any], Tensors] | None:
        """Fills the tensors that `targets` makes of the facts from the newest sound checkpoint; returns both.

        None where there is no checkpoint. Damaged ones are told of, removed, and passed over. Raises UserError where
        all are damaged, and where the checkpoint is of another model.
        """
        # What a killed process left unfinished.
        run_on_rank0(lambda: _remove(self.folder.glob(".step-*.new")))
        damaged = []
        for path in self.found():
            try:
                facts = _read_facts(path)
            except _DamagedError as error:
                tell(f"{path}: {error}; the checkpoint before it is used")
                damaged.append(path)
                continue
            tensors = targets(facts)
            read_shards(path, tensors, split)
            run_on_rank0(lambda: _remove(damaged))
            return facts, tensors
        if damaged:
            raise UserError(f"{self.folder}: none of the checkpoints is usable; remove it to start the stage again")
        return None

    def remove(self) -> None:
        """All of them, once the stage is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _begin(self, temporary: Path) -> None:
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"{temporary}: cannot be made ({error.strerror})") from error

    def _complete(self, temporary: Path, path: Path, facts: Mapping[str, Any]) -> None:
        body = json.dumps({"schema": SCHEMA, **facts}, sort_keys=True)
        write_text(temporary / STATE, json.dumps({"sha256": hashlib.sha256(body.encode()).hexdigest(), "state": body}))
        try:
            sync(temporary)
            # One of this step is there if the epoch's end is written again, or if it was damaged. It leaves as a whole,
            # and the one before it stays meanwhile.
            replaced = path.with_name(f".{path.name}.old.new")
            if path.exists():
                path.rename(replaced)
            temporary.rename(path)
            sync(self.folder)
            _remove([replaced])
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from error
        _remove(self.found()[self.keep :])


def _remove(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _on_all_ranks(own: bool) -> bool:
    return bool(all_reduce(torch.tensor(own, dtype=torch.uint8), dist.ReduceOp.MIN))


def _agreed(save: _Save) -> dict[str, str]:
    """The digests of all files, waited for. What went wrong on one rank is a UserError on all of them."""
    mistake, own = "", {}
    try:
        with translate_errors(save.path, "cannot be saved"):
            own = save.digests.result()
    except UserError as error:
        mistake = str(error)
    told = [json.loads(text) for text in all_gather_str(json.dumps([mistake, own]))]
    mistake = next((wrong for wrong, _ in told if wrong), "")
    if mistake:
        raise UserError(mistake)
    return {name: digest for _, digests in told for name, digest in digests.items()}


class _DamagedError(Exception):
    """A checkpoint that cannot be used, and why."""


def _read_facts(path: Path) -> dict[str, Any]:
    """Raises _DamagedError on all ranks alike; each looks at its share of the files."""
    reason, facts = "", {}
    try:
        outer = json.loads((path / STATE).read_text(encoding="utf-8"))
        if hashlib.sha256(outer["state"].encode()).hexdigest() != outer["sha256"]:
            raise ValueError(f"the digest of {STATE} is wrong")
        facts = json.loads(outer["state"])
        if facts["schema"] != SCHEMA:
            raise ValueError(f"the schema is {facts['schema']!r}, this version reads {SCHEMA!r}")
        for name in sorted(facts["files"])[rank() :: world_size()]:
            if Path(name).name != name:
                raise ValueError(f"the file {name!r} lies outside it")
            if sha256_of(path / name) != facts["files"][name]:
                raise ValueError(f"the digest of {name} is wrong")
        extra = {file.name for file in path.glob(SHARDS)} - facts["files"].keys()
        if extra:
            raise ValueError(f"holds the file {min(extra)!r}, which does not belong to it")
    except Exception as error:  # a damaged file may break the parser anywhere
        reason = f"not a usable checkpoint ({' '.join(str(error).split())[:200] or type(error).__name__})"
    told = next((told for told in all_gather_str(reason) if told), "")
    if told:
        raise _DamagedError(told)
    return facts
