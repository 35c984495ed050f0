"""What is enrolled: people and their samples, in one SQLite file. N samples, M some of them, D feature."""

import json
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from facelt.errors import UserError
from facelt.gallery.contract import Contract
from facelt.gallery.database import Database
from facelt.gallery.rows import SampleRows, add_digest
from facelt.gallery.samples import Samples

NAME = "gallery.sqlite"
# Samples that are read at once.
BATCH_ROWS = 4096


@dataclass(frozen=True)
class State:
    """Where a gallery stands; `gallery` is its number for life.

    `revision` counts changes of what is enrolled, `removals` those that took samples away, `digest` is of all samples,
    and `unscrubbed` tells that bytes of removed samples may still be somewhere.
    """

    gallery: str
    revision: int
    removals: int
    digest: str
    people: int
    samples: int
    unscrubbed: int


class Truth:
    """An open gallery file. Whoever changes it holds the gallery's lock, and changes within `changing` blocks."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.contract = Contract.of_dict(self.setting("contract"))

    @classmethod
    def create(cls, path: Path, contract: Contract) -> "Truth":
        """A new one, empty. Raises UserError where the file exists."""
        database = Database.create(path)
        with database.transaction():
            database.run("INSERT INTO state VALUES (?, 0, 0, ?, 0, 0, 0)", (uuid.uuid4().hex, f"{0:064x}"))
            database.run("INSERT INTO settings VALUES ('contract', ?)", (json.dumps(contract.as_dict()),))
        database.seal()
        return cls(database)

    @classmethod
    def open(cls, path: Path, *, write: bool) -> "Truth":
        """An existing one. Raises UserError where it is missing, damaged or of another version."""
        return cls(Database.open(path, write=write))

    def close(self) -> None:
        self._database.close()

    def reading(self) -> AbstractContextManager[None]:
        """A block in which everything is read at one revision."""
        return self._database.transaction("BEGIN")

    def changing(self) -> AbstractContextManager[None]:
        """A block that is carried out as a whole, and on disk after it, or not at all."""
        return self._database.transaction()

    def state(self) -> State:
        return State(*self._database.one("SELECT * FROM state"))

    def setting(self, name: str) -> Any:
        """The value under a name; None without one."""
        row = self._database.one("SELECT value FROM settings WHERE name = ?", (name,))
        return None if row is None else json.loads(row[0])

    def set_setting(self, name: str, value: Any) -> None:
        self._database.run("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, json.dumps(value)))

    def rows(self, after: int = 0) -> Iterator[SampleRows]:
        """All samples with greater numbers than `after`, in the order of these, BATCH_ROWS at a time."""
        while found := self._database.run(
            "SELECT id, person, embedding FROM samples WHERE id > ? ORDER BY id LIMIT ?", (after, BATCH_ROWS)
        ):
            yield self._rows(found)
            after = found[-1][0]

    def samples_of(self, sample_M: Sequence[int]) -> dict[int, tuple[str, str, bytes]]:
        """Person's name, key and embedding of the samples of these numbers that exist."""
        found = self._database.among(
            "SELECT samples.id, name, key, embedding FROM samples JOIN people ON people.id = person "
            "WHERE samples.id IN ({})",
            sample_M,
        )
        return {number: tuple(rest) for number, *rest in found}

    def names_of(self, person_M: Sequence[int]) -> dict[int, str]:
        """The names of the people of these numbers that exist."""
        return dict(self._database.among("SELECT id, name FROM people WHERE id IN ({})", person_M))

    def numbers_of(self, names: Sequence[str]) -> dict[str, int]:
        """The numbers of those of these people that are enrolled."""
        return dict(self._database.among("SELECT name, id FROM people WHERE name IN ({})", names))

    def people(self) -> list[tuple[str, int]]:
        """Everybody's name and number of samples, by name."""
        return self._database.run(
            "SELECT name, count(*) FROM people JOIN samples ON person = people.id GROUP BY people.id ORDER BY name"
        )

    def samples(self) -> Iterator[Samples]:
        """Everything that was enrolled, BATCH_ROWS at a time."""
        after = 0
        while found := self._database.run(
            "SELECT key, name, embedding, metadata, provenance, samples.id FROM samples "
            "JOIN people ON people.id = person WHERE samples.id > ? ORDER BY samples.id LIMIT ?",
            (after, BATCH_ROWS),
        ):
            keys, people, embeddings, *notes, numbers = zip(*found, strict=True)
            yield Samples(keys, people, self._matrix(embeddings), *([json.loads(text) for text in n] for n in notes))
            after = numbers[-1]

    def defects(self) -> list[str]:
        """What is wrong in the file itself, of which everything is read."""
        try:
            wrong = [text for (text,) in self._database.run("PRAGMA integrity_check") if text != "ok"]
            refers = self._database.run("PRAGMA foreign_key_check")
            wrong += [f"row {row} of {table} refers to nobody" for table, row, *_ in refers]
            state, digest, samples = self.state(), 0, 0
            for rows in self.rows():
                digest, samples = digest + rows.digest(), samples + len(rows)
            (people,) = self._database.one("SELECT count(*) FROM people")
        except (UserError, ValueError) as error:
            return [f"cannot be read to its end: {error}"]
        if (people, samples) != (state.people, state.samples):
            wrong.append(f"holds {people} people and {samples} samples, noted are {state.people} and {state.samples}")
        if add_digest("0", digest) != state.digest:
            wrong.append("holds other embeddings than were enrolled: their digest is another")
        return wrong

    def put(self, samples: Samples) -> list[int]:
        """Enrols checked samples; one whose key exists takes the place of the old one.

        Returns the numbers of the samples that were replaced.
        """
        database = self._database
        gone = [number for (number,) in database.among("SELECT id FROM samples WHERE key IN ({})", samples.keys)]
        self._delete(gone)
        distinct = list(dict.fromkeys(samples.people))
        known = self.numbers_of(distinct)
        database.run_many("INSERT INTO people(name) VALUES (?)", ((name,) for name in distinct if name not in known))
        person_of = self.numbers_of(distinct)
        (last,) = database.one("SELECT seq FROM sqlite_sequence WHERE name = 'samples'") or (0,)
        sample_N = np.arange(last + 1, last + 1 + len(samples), dtype=np.int64)
        person_N = np.array([person_of[name] for name in samples.people], dtype=np.int64)
        row_ND = np.ascontiguousarray(samples.embedding_ND, dtype="<f4")
        now = [datetime.now(UTC).isoformat(timespec="seconds")] * len(samples)
        columns = sample_N.tolist(), samples.keys, person_N.tolist(), *samples.notes(), now, map(bytes, row_ND)
        database.run_many("INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?, ?)", zip(*columns, strict=True))
        self._note(len(distinct) - len(known), len(samples), SampleRows(sample_N, person_N, row_ND).digest())
        self._revise(removed=bool(gone))
        return gone

    def remove(self, people: Sequence[str], keys: Sequence[str]) -> list[int]:
        """Takes all samples of people away, and samples by key; all are noted as `removing` until `scrub`.

        Whoever is not enrolled is noted too where there are snapshots: these may be older than a change of name, or
        have been out of reach when somebody was removed. Returns the numbers of the samples that are gone.
        """
        database = self._database
        of_people = "SELECT samples.id FROM samples JOIN people ON people.id = person WHERE name IN ({})"
        found = database.among(of_people, people) + database.among("SELECT id FROM samples WHERE key IN ({})", keys)
        gone = sorted({number for (number,) in found})
        if gone or self.snapshots():
            database.run_many("INSERT INTO removing VALUES (?, NULL)", ((name,) for name in people))
            database.run_many("INSERT INTO removing VALUES (NULL, ?)", ((key,) for key in keys))
            database.among("INSERT INTO removing SELECT NULL, key FROM samples WHERE id IN ({})", gone)
            database.run("UPDATE state SET unscrubbed = 1")
        if gone:
            self._delete(gone)
            self._revise(removed=True)
        return gone

    def missing(self, people: Sequence[str], keys: Sequence[str]) -> tuple[list[str], list[str]]:
        """Which of these people and keys are not enrolled."""
        known = self.numbers_of(people)
        known_keys = {key for (key,) in self._database.among("SELECT key FROM samples WHERE key IN ({})", keys)}
        return [name for name in people if name not in known], [key for key in keys if key not in known_keys]

    def snapshots(self) -> list[Path]:
        """Copies that this gallery made."""
        return [Path(path) for (path,) in self._database.run("SELECT path FROM snapshots ORDER BY path")]

    def removing(self) -> tuple[list[str], list[str]]:
        """People and keys whose removal is committed, and may have to be carried out in snapshots."""
        found = self._database.run("SELECT person, key FROM removing")
        return [person for person, _ in found if person is not None], [key for _, key in found if key is not None]

    def copy_to(self, path: Path) -> None:
        """Writes a database of the same content, noted before it is begun. Raises UserError where that is impossible.

        Only the live content is copied.
        """
        with self.changing():
            self._database.run("INSERT OR IGNORE INTO snapshots VALUES (?)", (str(path.parent.absolute()),))
        try:
            # An empty file is taken, and keeps its mode.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        except OSError as error:
            raise UserError(f"{path}: cannot be made ({error.strerror})") from error
        self._database.run("VACUUM INTO ?", (str(path),))
        copy = Database.open(path, write=True)
        with copy.transaction():
            copy.run("DELETE FROM snapshots")
        copy.close()

    def scrub(self) -> bool:
        """Writes the file anew and empties the log, so that neither holds a byte of what was removed.

        SQLite's secure_delete overwrites what is deleted, but not every copy that moving rows between pages has left,
        of tables as of indexes: after 60 small removals 3 of 6,000 removed names and notes were still in the file.
        False where a reader keeps the log from being emptied: this is to be called again then.
        """
        self._database.run("DELETE FROM removing")
        self._database.run("VACUUM")
        (is_busy, *_) = self._database.one("PRAGMA wal_checkpoint(TRUNCATE)")
        if not is_busy:
            self._database.run("UPDATE state SET unscrubbed = 0")
        return not is_busy

    def _delete(self, numbers: Sequence[int]) -> None:
        """Samples, and people who then have none."""
        database = self._database
        for start in range(0, len(numbers), BATCH_ROWS):
            part = numbers[start : start + BATCH_ROWS]
            rows = self._rows(database.among("SELECT id, person, embedding FROM samples WHERE id IN ({})", part))
            database.among("DELETE FROM samples WHERE id IN ({})", part)
            empty = (
                "FROM people WHERE id IN ({}) AND NOT EXISTS (SELECT 1 FROM samples WHERE person = people.id)",
                sorted(set(rows.person_N.tolist())),
            )
            people = sum(count for (count,) in database.among("SELECT count(*) " + empty[0], empty[1]))
            database.among("DELETE " + empty[0], empty[1])
            self._note(-people, -len(rows), -rows.digest())

    def _note(self, people: int, samples: int, digest: int) -> None:
        self._database.run(
            "UPDATE state SET people = people + ?, samples = samples + ?, digest = ?",
            (people, samples, add_digest(self.state().digest, digest)),
        )

    def _revise(self, *, removed: bool) -> None:
        self._database.run("UPDATE state SET revision = revision + 1, removals = removals + ?", (removed,))

    def _rows(self, found: Sequence[tuple]) -> SampleRows:
        sample_N, person_N, embeddings = zip(*found, strict=True)
        return SampleRows(np.array(sample_N), np.array(person_N), self._matrix(embeddings))

    def _matrix(self, embeddings: Sequence[bytes]) -> np.ndarray:
        return np.frombuffer(b"".join(embeddings), "<f4").reshape(len(embeddings), self.contract.dimension)
