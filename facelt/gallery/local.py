"""One writer at a time, known to the second one by its process number.

Methods for one thread at a time, in the process that opened what they use.

A gallery in a folder of one machine: the truth, the indexes derived from it, and the one writer's lock.

    gallery.sqlite     the truth; with -wal and -shm beside it while it is open
    index/             the embeddings as they are searched, made from the truth
    templates/         each person's mean embedding, made where somebody asks for it
    writer.lock        held by who writes

P probes, K people, M samples, D feature.
"""

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np

from facelt.errors import UserError
from facelt.gallery.backend import Candidate, Count, Found, Nearest, Removed, best_people
from facelt.gallery.index import Index, View
from facelt.gallery.model_spec import Contract
from facelt.gallery.samples import Samples, checked, checked_rows
from facelt.gallery.sqlite import NAME, Truth
from facelt.search.engine import Engine
from facelt.search.exact import BadRow, similarities


class WriterLock:
    """An advisory lock on a file that the system releases when its holder ends, however it ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether this object holds it."""
        return self._handle is not None

    def try_acquire(self) -> bool:
        """Takes the lock if nobody else has it. Raises UserError where the file cannot be opened."""
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be opened ({error.strerror}); only its owner can write") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            return False
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        self._handle = handle
        return True

    def acquire(self) -> None:
        """Takes the lock. Raises UserError, naming the other writer, where it is taken."""
        if not self.try_acquire():
            raise UserError(
                f"{self.path.parent}: process {self._holder()} is writing to this gallery; "
                "try again when it has finished (identify can be used meanwhile)"
            )

    def release(self) -> None:
        """Lets it go."""
        if self._handle is not None:
            # A process that was forked meanwhile has the file open as well, and would keep the lock.
            fcntl.flock(self._handle, fcntl.LOCK_UN)
            os.close(self._handle)
            self._handle = None

    def _holder(self) -> str:
        try:
            text = self.path.read_text(encoding="ascii", errors="replace").strip()
        except OSError:
            text = ""
        return text if text.isdigit() else "unknown"


class Turns:
    """Whose turn it is, and which process may have one: what SQLite keeps of an open file must not survive a fork."""

    def __init__(self) -> None:
        self._process, self._lock = os.getpid(), threading.RLock()

    @property
    def is_forked(self) -> bool:
        """Whether this is another process than the one that made it."""
        return os.getpid() != self._process

    def take(self, what: object) -> threading.RLock:
        """To be held in a `with` block. Raises UserError, naming `what`, in a forked process."""
        if self.is_forked:
            raise UserError(f"{what}: was opened by process {self._process}; a forked process opens its own")
        return self._lock


def alone(method: Callable) -> Callable:
    """A method of an object with a `path` and its `turns`."""

    @wraps(method)
    def guarded(self: Any, *arguments: Any, **options: Any) -> Any:
        with self.turns.take(self.path):
            return method(self, *arguments, **options)

    return guarded


# How long a reader waits for a writer that is just changing the index.
PATIENCE_SECONDS = 60.0
PAUSE_SECONDS = 0.05


class LocalGallery:
    """See Backend. With `write` it holds the writer's lock until it is closed, and first ends what a kill cut short."""

    def __init__(self, path: str | Path, *, write: bool = False, engine: Engine | None = None) -> None:
        self.path = Path(path)
        self.turns = Turns()
        self._lock = WriterLock(self.path / "writer.lock")
        self._writes = write
        self._truth = Truth.open(self.path / NAME, write=write)
        self._index = Index(self.path, self._truth, engine)
        if write:
            try:
                self._lock.acquire()
                self._index.follow()
                self._finish_removal()
            except BaseException:
                self.close()
                raise

    @classmethod
    def create(cls, path: str | Path, contract: Contract) -> "LocalGallery":
        """A new gallery, open for writing. Raises UserError where the folder holds anything."""
        path = Path(path)
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise UserError(f"{path}: is not empty; choose another folder or remove it")
            path.chmod(0o700)
        except OSError as error:
            raise UserError(f"{path}: cannot be made ({error.strerror})") from error
        Truth.create(path / NAME, contract).close()
        return cls(path, write=True)

    @property
    def contract(self) -> Contract:
        return self._truth.contract

    def close(self) -> None:
        if not self.turns.is_forked:
            with self.turns.take(self.path):
                self._truth.close()
                self._lock.release()

    @alone
    def upsert(self, samples: Samples) -> None:
        self._refuse_reader()
        samples = checked(samples, self.contract)
        if not len(samples):
            return
        with self._truth.changing():
            gone = self._truth.put(samples)
        if gone:
            self._index.forget_templates()
        self._index.follow(gone)

    @alone
    def remove(self, people: Sequence[str] = (), keys: Sequence[str] = ()) -> Removed:
        self._refuse_reader()
        people, keys = list(dict.fromkeys(people)), list(dict.fromkeys(keys))
        missing = self._truth.missing(people, keys)
        with self._truth.changing():
            gone = self._truth.remove(people, keys)
        if gone:
            self._index.forget_templates()
            self._index.follow(gone)
        return Removed(len(gone), *missing, self._finish_removal())

    @alone
    def search(
        self, probe_PD: np.ndarray, k: int, *, templates: bool = False, exact: bool = True, floor: float = -np.inf
    ) -> Found:
        probe_PD = checked_rows(probe_PD, self.contract)
        started = time.monotonic()
        while True:
            with self._truth.reading():
                state = self._truth.state()
                view = self._index.view(state, templates=templates)
                found = None if view is None else self._search(view, probe_PD, min(k, state.people), templates, floor)
            # An index is changed in place where samples are removed.
            if found and self._truth.state().removals == state.removals:
                return found
            if found is None:
                self._bring_up(templates, view is not None, started)

    @alone
    def count(self) -> Count:
        state = self._truth.state()
        return Count(state.people, state.samples)

    @alone
    def people(self) -> Iterator[tuple[str, int]]:
        return iter(self._truth.people())

    def samples(self) -> Iterator[Samples]:
        """Everything that is enrolled, a few thousand at a time."""
        batches = self._truth.samples()
        while (batch := self._next(batches)) is not None:
            yield batch

    @alone
    def snapshot(self, path: str | Path) -> None:
        """See Backend. Removals are carried out in this copy as well, as long as it stays there."""
        self._refuse_reader()
        path = Path(path)
        if path.absolute().is_relative_to(self.path.absolute()):
            raise UserError(f"{path}: lies within the gallery; write the snapshot elsewhere")
        try:
            path.mkdir(mode=0o700, parents=True)
        except OSError as error:
            raise UserError(f"{path}: cannot be made ({error.strerror}); choose another folder") from error
        self._truth.copy_to(path / NAME)

    @alone
    def setting(self, name: str) -> Any:
        return self._truth.setting(name)

    @alone
    def set_setting(self, name: str, value: Any) -> None:
        self._refuse_reader()
        with self._truth.changing():
            self._truth.set_setting(name, value)

    @alone
    def rebuild(self) -> None:
        """Makes the index anew from the truth."""
        self._refuse_reader()
        self._index.rebuild()

    @alone
    def defects(self) -> list[str]:
        """All that is wrong with the files, every byte of which is read."""
        wrong = [f"{self.path / NAME}: {text}" for text in self._truth.defects()]
        if not wrong and self._truth.state().unscrubbed:
            wrong.append(f"{self.path / NAME}: bytes of removed samples may be left; facelt gallery rebuild")
        wrong += [f"{self.path / 'index'}: {text}; facelt gallery rebuild" for text in self._index.defects()]
        for path in sorted(self.path.glob(f"{NAME}*")):
            if path.stat().st_mode & 0o077:
                wrong.append(f"{path}: others may read it; chmod 600")
        return wrong

    @alone
    def facts(self) -> dict[str, Any]:
        """What `info` tells of the files."""
        state = self._truth.state()
        return {
            "gallery": state.gallery,
            "revision": state.revision,
            "snapshots": list(map(str, self._truth.snapshots())),
        }

    @alone
    def _next(self, batches: Iterator[Samples]) -> Samples | None:
        return next(batches, None)

    def _search(self, view: View, probe_PD: np.ndarray, k: int, templates: bool, floor: float) -> Found | None:
        """None where what was found is not what is enrolled: somebody else wrote to the index."""
        try:
            # Rows that a removal leaves behind are zeros, and a search may be on its way through them.
            with np.errstate(divide="ignore", invalid="ignore"):
                found, _ = best_people(
                    lambda probe_U, t: view.nearest(probe_PD[probe_U], t),
                    len(probe_PD),
                    k,
                    samples=view.count,
                    floor=floor,
                    crowded=lambda probe: view.crowded(probe_PD[probe], k),
                )
        except BadRow as error:
            if error.side == "database":
                return None
            raise
        named = self._named_templates(found) if templates else self._named_samples(found, probe_PD)
        return None if named is None else Found(named, True, view.count)

    def _named_samples(self, found: Sequence[Nearest], probe_PD: np.ndarray) -> list[list[Candidate]] | None:
        sample_M = np.concatenate([one.sample_PT[0] for one in found]) if found else np.empty(0, np.int64)
        score_M = np.concatenate([one.score_PT[0] for one in found]) if found else np.empty(0)
        probe_M = np.repeat(np.arange(len(found)), [one.score_PT.shape[1] for one in found])
        distinct, place_M = np.unique(sample_M, return_inverse=True)
        known = self._truth.samples_of(distinct.tolist())
        if len(known) != len(distinct):
            return None
        rows = [known[number][2] for number in distinct.tolist()]
        row_ND = np.frombuffer(b"".join(rows), "<f4").reshape(len(rows), self.contract.dimension)
        # Equal rows score equally: other scores are of other rows.
        if (similarities(probe_PD, probe_M, row_ND, place_M, cosine=self.contract.is_unit) != score_M).any():
            return None
        return [
            [
                Candidate(known[sample][0], score, known[sample][1])
                for score, sample in zip(one.score_PT[0].tolist(), one.sample_PT[0].tolist(), strict=True)
            ]
            for one in found
        ]

    def _named_templates(self, found: Sequence[Nearest]) -> list[list[Candidate]] | None:
        numbers = sorted({number for one in found for number in one.person_PT[0].tolist()})
        names = self._truth.names_of(numbers)
        if len(names) != len(numbers):
            return None
        return [
            [
                Candidate(names[person], score, None)
                for score, person in zip(one.score_PT[0].tolist(), one.person_PT[0].tolist(), strict=True)
            ]
            for one in found
        ]

    def _bring_up(self, templates: bool, is_damaged: bool, started: float) -> None:
        """Makes the index fit, or lets the writer do so for a while."""
        if time.monotonic() - started > PATIENCE_SECONDS:
            raise UserError(f"{self.path}: the index is out of date and its writer keeps it so; try again later")
        if not self._lock.is_held and not self._lock.try_acquire():
            time.sleep(PAUSE_SECONDS)
            return
        try:
            if is_damaged:
                self._index.rebuild()
            self._index.follow(templates=templates)
        finally:
            if not self._writes:
                self._lock.release()

    def _finish_removal(self) -> list[str]:
        """Carries a removal that is committed out in the snapshots and wipes it; returns what could not be done."""
        if not self._truth.state().unscrubbed:
            return []
        unfinished = []
        people, keys = self._truth.removing()
        for path in self._truth.snapshots():
            try:
                copy = LocalGallery(path, write=True)
                try:
                    if copy.facts()["gallery"] != self.facts()["gallery"]:
                        raise UserError(f"{path}: is another gallery now")
                    unfinished += copy.remove(people, keys).unfinished
                finally:
                    copy.close()
            except UserError as error:
                unfinished.append(f"removed people may still be in a snapshot: {error}")
        left = "bytes of removed samples may be left, which the next opening for writing wipes"
        try:
            if not self._truth.scrub():
                unfinished.append(f"{self.path}: a reader keeps the log from being emptied; {left}")
        except UserError as error:
            # It needs room for the whole file twice. Who is removed is found by nobody all the same.
            unfinished.append(f"{error}; {left}")
        return unfinished

    def _refuse_reader(self) -> None:
        if not self._writes:
            raise UserError(f"{self.path}: is open for reading only")
