"""Where a stage stands: one folder a checkpoint, complete or not there, read back without running anything.

step-00000120/state.json               everything that is no tensor, and the digests of the files beside it
step-00000120/shard-*.safetensors      each rank's share of the tensors, as torch.distributed.checkpoint cuts them
"""

import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from facelt.engine.ranks import gather_text, is_lost, on_first_rank
from facelt.errors import UserError
from facelt.parallel import ClassRange, is_split, rank, world
from facelt.whole_files import sha256_of, sync, write_text

SCHEMA = "facelt.checkpoint/2"
STATE = "state.json"
_NAME = re.compile(r"step-\d{8,}")

Tensors = Mapping[str, torch.Tensor]


class Checkpoints:
    """The checkpoints of a stage, the newest `keep` of them.

    Rows of classes are cut as DTensors are, so that what was saved on some ranks is read on any other number of them.
    The files are safetensors: nothing in them can be run.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def found(self) -> list[Path]:
        """Complete ones, the newest first; each may still be damaged."""
        names = [path for path in self.folder.glob("step-*") if _NAME.fullmatch(path.name)]
        return sorted(names, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)

    def save(self, step: int, tensors: Tensors, split: Mapping[str, ClassRange], facts: Mapping[str, Any]) -> None:
        """Every rank hands in its tensors; `split` names those that are its rows of all classes.

        The folder takes its name once everything is on disk. Raises UserError when the disk refuses; the checkpoints
        there before stay.
        """
        path = self.folder / f"step-{step:08d}"
        temporary = self.folder / f".{path.name}.new"
        on_first_rank(lambda: self._begin(temporary))
        try:
            with _refusals(path, "cannot be saved"), _alone_without_a_word():
                writer = HuggingFaceStorageWriter(str(temporary), save_distributed=True)
                packed = {name: value.contiguous() for name, value in tensors.items()}
                dcp.save(_sharded(packed, split), storage_writer=writer, no_dist=not dist.is_initialized())
            digests = _digests(temporary)
            on_first_rank(lambda: self._complete(temporary, path, {**facts, "files": digests}))
        finally:
            if rank() == 0:
                shutil.rmtree(temporary, ignore_errors=True)

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
        damaged = []
        for path in self.found():
            try:
                facts = _read_facts(path)
            except _DamagedError as error:
                tell(f"{path}: {error}; the checkpoint before it is used")
                damaged.append(path)
                continue
            tensors = targets(facts)
            with _refusals(path, "does not belong to this run"), _alone_without_a_word():
                reader = HuggingFaceStorageReader(str(path))
                dcp.load(_sharded(tensors, split), storage_reader=reader, no_dist=not dist.is_initialized())
            on_first_rank(lambda: _remove(damaged))
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
            # One of this step can only be there if it was damaged, or is being written again with the same values.
            shutil.rmtree(path, ignore_errors=True)
            temporary.rename(path)
            sync(self.folder)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from error
        _remove(self.found()[self.keep :])


def _remove(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


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
        for name in sorted(facts["files"])[rank() :: world()]:
            if Path(name).name != name:
                raise ValueError(f"the file {name!r} lies outside it")
            if sha256_of(path / name) != facts["files"][name]:
                raise ValueError(f"the digest of {name} is wrong")
        extra = {file.name for file in path.glob("*.safetensors")} - facts["files"].keys()
        if extra:
            raise ValueError(f"holds the file {min(extra)!r}, which does not belong to it")
    except Exception as error:  # a damaged file may break the parser anywhere
        reason = f"not a usable checkpoint ({' '.join(str(error).split())[:200] or type(error).__name__})"
    told = next((told for told in gather_text(reason) if told), "")
    if told:
        raise _DamagedError(told)
    return facts


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, which are on disk after this; the ranks share the work."""
    names = sorted(path.name for path in folder.glob("*.safetensors"))[rank() :: world()]
    for name in names:
        sync(folder / name)
    own = {name: sha256_of(folder / name) for name in names}
    return {name: digest for told in gather_text(json.dumps(own)) for name, digest in json.loads(told).items()}


def _sharded(tensors: Tensors, split: Mapping[str, ClassRange]) -> dict[str, torch.Tensor]:
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
def _refusals(path: Path, meaning: str) -> Iterator[None]:
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


@contextmanager
def _alone_without_a_word() -> Iterator[None]:
    """One process is no mistake worth a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
