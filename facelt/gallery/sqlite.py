"""The SQLite file of a gallery: its tables, and a connection with the settings and the errors that fit it.

What is enrolled: people and their samples, in one SQLite file. N samples, M some of them, D feature.
"""

import json
import os
import sqlite3
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from facelt.errors import UserError
from facelt.gallery.model_spec import Contract
from facelt.gallery.samples import SampleRows, Samples, add_digest

SCHEMA_VERSION = 1
# "FLTG": what the file is, for whoever finds it.
APPLICATION = 0x464C5447
# A row of 512 float32 takes just over half of SQLite's usual page, and every second half would be empty.
PAGE_BYTES = 16384
CACHE_KIB = 65536
# How long a statement waits for another process.
PATIENCE_SECONDS = 30
# Of one statement; SQLite's own limit is 32766.
PARAMETERS = 10_000

# What to do about errors of SQLite's.
HINTS = {
    "locked": "; another process keeps it",
    "unable to open": "; readers too need to write beside it: copy the gallery to a folder where that is allowed",
    "malformed": "; it is damaged: go back to a snapshot",
}

TABLES = """
CREATE TABLE people(
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE
);
CREATE TABLE samples(
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE,
    person INTEGER NOT NULL REFERENCES people(id),
    metadata TEXT NOT NULL,
    provenance TEXT NOT NULL,
    enrolled TEXT NOT NULL,
    embedding BLOB NOT NULL
);
CREATE INDEX samples_by_person ON samples(person);
-- JSON by name: the contract, thresholds.
CREATE TABLE settings(name TEXT PRIMARY KEY, value TEXT NOT NULL);
-- One row: see truth.State.
CREATE TABLE state(
    gallery TEXT NOT NULL,
    revision INTEGER NOT NULL,
    removals INTEGER NOT NULL,
    digest TEXT NOT NULL,
    people INTEGER NOT NULL,
    samples INTEGER NOT NULL,
    unscrubbed INTEGER NOT NULL
);
-- Copies that removals are carried out in as well, and what is still to be removed from them.
CREATE TABLE snapshots(path TEXT PRIMARY KEY);
CREATE TABLE removing(person TEXT, key TEXT);
"""


class Database:
    """One connection, in autocommit mode outside `transaction`. Every error of SQLite's is raised as UserError."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection

    @classmethod
    def create(cls, path: Path) -> "Database":
        """A new file with empty tables, for its owner only, not to be opened again before `seal`."""
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            raise UserError(f"{path}: exists already; choose another folder or remove it") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be made ({error.strerror})") from error
        made = cls(path, _connection(path))
        made.run(f"PRAGMA page_size = {PAGE_BYTES}")
        made._configure()
        with made.transaction():
            for statement in TABLES.split(";"):
                made.run(statement)
            made.run(f"PRAGMA application_id = {APPLICATION}")
        return made

    def seal(self) -> None:
        """From now on it is complete."""
        self.run(f"PRAGMA user_version = {SCHEMA_VERSION}")

    @classmethod
    def open(cls, path: Path, *, write: bool) -> "Database":
        """An existing one. Raises UserError where it is missing, damaged or of another version."""
        if not path.is_file():
            raise UserError(f"{path.parent}: there is no gallery here ({path.name} is missing); make one with create")
        opened = cls(path, _connection(path))
        try:
            found = opened.one("PRAGMA application_id")[0], opened.one("PRAGMA user_version")[0]
            if found == (APPLICATION, 0):
                raise UserError(f"{path}: its creation was cut short; remove the folder and create it again")
            if found != (APPLICATION, SCHEMA_VERSION):
                raise UserError(f"{path}: is of schema {found[1]}, this version reads galleries of {SCHEMA_VERSION}")
            opened._configure()
            if not write:
                opened.run("PRAGMA query_only = ON")
        except UserError:
            opened.close()
            raise
        return opened

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def transaction(self, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
        """Carried out as a whole, and on disk at its end, or not at all."""
        self.run(begin)
        try:
            yield
            self.run("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.rollback()
            raise

    def run(self, statement: str, values: Sequence[Any] = ()) -> list[tuple]:
        """All rows that a statement gives."""
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._explained(error) from error

    def run_many(self, statement: str, values: Iterable[Sequence[Any]]) -> None:
        """The statement with each of these values."""
        try:
            self._connection.executemany(statement, values)
        except sqlite3.Error as error:
            raise self._explained(error) from error

    def one(self, statement: str, values: Sequence[Any] = ()) -> tuple | None:
        """The first row; None without any."""
        return next(iter(self.run(statement, values)), None)

    def among(self, statement: str, values: Sequence[Any]) -> list[tuple]:
        """All rows of a statement with `IN ({})`, which takes any number of values."""
        found: list[tuple] = []
        for start in range(0, len(values), PARAMETERS):
            part = values[start : start + PARAMETERS]
            found += self.run(statement.format(",".join("?" * len(part))), part)
        return found

    def _configure(self) -> None:
        for setting in (
            *("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"),
            *("trusted_schema = OFF", f"cache_size = -{CACHE_KIB}"),
        ):
            self.run(f"PRAGMA {setting}")

    def _explained(self, error: sqlite3.Error) -> UserError:
        hint = next((hint for text, hint in HINTS.items() if text in str(error)), "")
        return UserError(f"{self.path}: {error}{hint}")


def _connection(path: Path) -> sqlite3.Connection:
    try:
        # Never a new file by opening; where a transaction begins and ends is said here, not guessed by Python.
        uri = path.absolute().as_uri() + "?mode=rw"
        return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=PATIENCE_SECONDS, check_same_thread=False)
    except sqlite3.Error as error:
        raise UserError(f"{path}: cannot be opened ({error})") from error


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
