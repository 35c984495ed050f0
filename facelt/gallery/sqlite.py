"""SQLite database of a gallery: connection, schema, and the store of people and samples.

N samples, M some of them, D feature.
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
from facelt.gallery.model_spec import ModelSpec
from facelt.gallery.samples import SampleRows, Samples, add_digest

SCHEMA_VERSION = 1
# "FLTG", the application id in the header of the file.
APPLICATION = 0x464C5447
# A row of 512 float32 takes just over half of SQLite's default page, which would waste the other half.
PAGE_BYTES = 16384
CACHE_KIB = 65536
# Time that a statement waits for another process.
BUSY_TIMEOUT_SECONDS = 30
# Parameters of one statement; SQLite's limit is 32766.
MAX_PARAMETERS = 10_000

# Advice for SQLite errors, by a part of their message.
ERROR_HINTS = {
    "locked": "; another process holds a lock on it",
    "unable to open": "; reading needs write access to its folder as well: copy the gallery to a writable folder",
    "malformed": "; it is damaged: restore a snapshot",
}

SCHEMA_SQL = """
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
-- JSON by name: the model specification, thresholds.
CREATE TABLE settings(name TEXT PRIMARY KEY, value TEXT NOT NULL);
-- One row: see GalleryState.
CREATE TABLE state(
    gallery TEXT NOT NULL,
    revision INTEGER NOT NULL,
    removals INTEGER NOT NULL,
    digest TEXT NOT NULL,
    people INTEGER NOT NULL,
    samples INTEGER NOT NULL,
    unscrubbed INTEGER NOT NULL
);
-- Copies to which removals are applied as well, and removals that are still pending there.
CREATE TABLE snapshots(path TEXT PRIMARY KEY);
CREATE TABLE removing(person TEXT, key TEXT);
"""


class Database:
    """Connection in autocommit mode outside `transaction`. SQLite errors are raised as UserError."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection

    @classmethod
    def create(cls, path: Path) -> "Database":
        """Creates a file with empty tables, accessible to its owner only; it can be opened after `seal`."""
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            raise UserError(f"{path}: exists already; choose another folder or remove it") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be created ({error.strerror})") from error
        database = cls(path, _connection(path))
        database.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        database._configure()
        with database.transaction():
            for statement in SCHEMA_SQL.split(";"):
                database.execute(statement)
            database.execute(f"PRAGMA application_id = {APPLICATION}")
        return database

    def seal(self) -> None:
        """Marks the creation as complete."""
        self.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    @classmethod
    def open(cls, path: Path, *, write: bool) -> "Database":
        """Opens an existing file. Raises UserError if it is missing, damaged or of another version."""
        if not path.is_file():
            raise UserError(
                f"{path.parent}: no gallery here ({path.name} is missing); create one with `facelt gallery create`"
            )
        database = cls(path, _connection(path))
        try:
            header = database.fetch_one("PRAGMA application_id")[0], database.fetch_one("PRAGMA user_version")[0]
            if header == (APPLICATION, 0):
                raise UserError(f"{path}: its creation was interrupted; remove the folder and create it again")
            if header != (APPLICATION, SCHEMA_VERSION):
                raise UserError(f"{path}: has schema {header[1]}, this version reads schema {SCHEMA_VERSION}")
            database._configure()
            if not write:
                database.execute("PRAGMA query_only = ON")
        except UserError:
            database.close()
            raise
        return database

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def transaction(self, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
        """Runs the block as one transaction: durable at its end, or rolled back."""
        self.execute(begin)
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.rollback()
            raise

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[tuple]:
        """Runs a statement and returns all rows."""
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._translate(error) from error

    def execute_many(self, statement: str, values: Iterable[Sequence[Any]]) -> None:
        """Runs a statement with each row of values."""
        try:
            self._connection.executemany(statement, values)
        except sqlite3.Error as error:
            raise self._translate(error) from error

    def fetch_one(self, statement: str, values: Sequence[Any] = ()) -> tuple | None:
        """Returns the first row of a statement, None if there is none."""
        return next(iter(self.execute(statement, values)), None)

    def select_in(self, statement: str, values: Sequence[Any]) -> list[tuple]:
        """Returns all rows of a statement with `IN ({})`, for any number of values."""
        rows: list[tuple] = []
        for start in range(0, len(values), MAX_PARAMETERS):
            part = values[start : start + MAX_PARAMETERS]
            rows += self.execute(statement.format(",".join("?" * len(part))), part)
        return rows

    def _configure(self) -> None:
        for setting in (
            *("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"),
            *("trusted_schema = OFF", f"cache_size = -{CACHE_KIB}"),
        ):
            self.execute(f"PRAGMA {setting}")

    def _translate(self, error: sqlite3.Error) -> UserError:
        hint = next((hint for text, hint in ERROR_HINTS.items() if text in str(error)), "")
        return UserError(f"{self.path}: {error}{hint}")


def _connection(path: Path) -> sqlite3.Connection:
    try:
        # Opening never creates a file; transactions are explicit.
        uri = path.absolute().as_uri() + "?mode=rw"
        return sqlite3.connect(
            uri, uri=True, isolation_level=None, timeout=BUSY_TIMEOUT_SECONDS, check_same_thread=False
        )
    except sqlite3.Error as error:
        raise UserError(f"{path}: cannot be opened ({error})") from error


DATABASE_FILE = "gallery.sqlite"
# Samples read at once.
READ_ROWS = 4096


@dataclass(frozen=True)
class GalleryState:
    """State of a gallery; `gallery` is its permanent id.

    `revision` counts changes, `removals` the changes that removed samples, `digest` covers all samples, and
    `unscrubbed` is non-zero while bytes of removed samples may remain in a file.
    """

    gallery: str
    revision: int
    removals: int
    digest: str
    people: int
    samples: int
    unscrubbed: int


class SampleStore:
    """People and samples in the database. Writers hold the lock of the gallery and use `write_transaction`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.model_spec = ModelSpec.from_dict(self.setting("contract"))

    @classmethod
    def create(cls, path: Path, model_spec: ModelSpec) -> "SampleStore":
        """Creates an empty store. Raises UserError if the file exists."""
        database = Database.create(path)
        with database.transaction():
            database.execute("INSERT INTO state VALUES (?, 0, 0, ?, 0, 0, 0)", (uuid.uuid4().hex, f"{0:064x}"))
            database.execute("INSERT INTO settings VALUES ('contract', ?)", (json.dumps(model_spec.to_dict()),))
        database.seal()
        return cls(database)

    @classmethod
    def open(cls, path: Path, *, write: bool) -> "SampleStore":
        """Opens an existing store. Raises UserError if it is missing, damaged or of another version."""
        return cls(Database.open(path, write=write))

    def close(self) -> None:
        self._database.close()

    def read_transaction(self) -> AbstractContextManager[None]:
        """Returns a context in which all reads see one revision."""
        return self._database.transaction("BEGIN")

    def write_transaction(self) -> AbstractContextManager[None]:
        """Returns a context whose changes are durable at its end, or rolled back."""
        return self._database.transaction()

    def state(self) -> GalleryState:
        return GalleryState(*self._database.fetch_one("SELECT * FROM state"))

    def setting(self, name: str) -> Any:
        """Returns the value of a setting, None if there is none."""
        row = self._database.fetch_one("SELECT value FROM settings WHERE name = ?", (name,))
        return None if row is None else json.loads(row[0])

    def set_setting(self, name: str, value: Any) -> None:
        self._database.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, json.dumps(value)))

    def rows(self, after: int = 0) -> Iterator[SampleRows]:
        """Yields the samples with ids above `after` in order of id, READ_ROWS at a time."""
        while records := self._database.execute(
            "SELECT id, person, embedding FROM samples WHERE id > ? ORDER BY id LIMIT ?", (after, READ_ROWS)
        ):
            yield self._rows(records)
            after = records[-1][0]

    def samples_by_id(self, sample_M: Sequence[int]) -> dict[int, tuple[str, str, bytes]]:
        """Returns person, key and embedding of the samples with these ids that exist."""
        records = self._database.select_in(
            "SELECT samples.id, name, key, embedding FROM samples JOIN people ON people.id = person "
            "WHERE samples.id IN ({})",
            sample_M,
        )
        return {sample_id: tuple(values) for sample_id, *values in records}

    def names_by_id(self, person_M: Sequence[int]) -> dict[int, str]:
        """Returns the names of the people with these ids that exist."""
        return dict(self._database.select_in("SELECT id, name FROM people WHERE id IN ({})", person_M))

    def ids_by_name(self, names: Sequence[str]) -> dict[str, int]:
        """Returns the ids of the people with these names that are enrolled."""
        return dict(self._database.select_in("SELECT name, id FROM people WHERE name IN ({})", names))

    def people(self) -> list[tuple[str, int]]:
        """Returns the name and the number of samples of each person, sorted by name."""
        return self._database.execute(
            "SELECT name, count(*) FROM people JOIN samples ON person = people.id GROUP BY people.id ORDER BY name"
        )

    def samples(self) -> Iterator[Samples]:
        """Yields all samples, READ_ROWS at a time."""
        after = 0
        while records := self._database.execute(
            "SELECT key, name, embedding, metadata, provenance, samples.id FROM samples "
            "JOIN people ON people.id = person WHERE samples.id > ? ORDER BY samples.id LIMIT ?",
            (after, READ_ROWS),
        ):
            keys, people, embeddings, *columns, ids = zip(*records, strict=True)
            objects = ([json.loads(text) for text in column] for column in columns)
            yield Samples(keys, people, self._matrix(embeddings), *objects)
            after = ids[-1]

    def check_integrity(self) -> list[str]:
        """Returns the defects of the file after reading all of it."""
        try:
            defects = [text for (text,) in self._database.execute("PRAGMA integrity_check") if text != "ok"]
            dangling = self._database.execute("PRAGMA foreign_key_check")
            defects += [f"row {row} of {table} refers to a missing person" for table, row, *_ in dangling]
            state, digest, samples = self.state(), 0, 0
            for rows in self.rows():
                digest, samples = digest + rows.digest(), samples + len(rows)
            (people,) = self._database.fetch_one("SELECT count(*) FROM people")
        except (UserError, ValueError) as error:
            return [f"cannot be read completely: {error}"]
        if (people, samples) != (state.people, state.samples):
            defects.append(
                f"holds {people} people and {samples} samples, recorded are {state.people} and {state.samples}"
            )
        if add_digest("0", digest) != state.digest:
            defects.append("the embeddings differ from those enrolled: their digest does not match")
        return defects

    def upsert(self, samples: Samples) -> list[int]:
        """Enrols validated samples; a sample with an existing key replaces the old one. Returns the replaced ids."""
        database = self._database
        replaced = [
            sample_id for (sample_id,) in database.select_in("SELECT id FROM samples WHERE key IN ({})", samples.keys)
        ]
        self._delete(replaced)
        distinct = list(dict.fromkeys(samples.people))
        existing = self.ids_by_name(distinct)
        added = [(name,) for name in distinct if name not in existing]
        database.execute_many("INSERT INTO people(name) VALUES (?)", added)
        id_of = self.ids_by_name(distinct)
        (last,) = database.fetch_one("SELECT seq FROM sqlite_sequence WHERE name = 'samples'") or (0,)
        sample_N = np.arange(last + 1, last + 1 + len(samples), dtype=np.int64)
        person_N = np.array([id_of[name] for name in samples.people], dtype=np.int64)
        row_ND = np.ascontiguousarray(samples.embedding_ND, dtype="<f4")
        now = [datetime.now(UTC).isoformat(timespec="seconds")] * len(samples)
        columns = sample_N.tolist(), samples.keys, person_N.tolist(), *samples.json_columns(), now, map(bytes, row_ND)
        database.execute_many("INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?, ?)", zip(*columns, strict=True))
        self._update_counts(len(added), len(samples), SampleRows(sample_N, person_N, row_ND).digest())
        self._increment_revision(removed=bool(replaced))
        return replaced

    def remove(self, people: Sequence[str], keys: Sequence[str]) -> list[int]:
        """Deletes all samples of people, and samples by key, and records them as `removing` until `scrub`.

        If there are snapshots, names and keys that are not enrolled are recorded as well: a snapshot may be older than
        a change of name, or may have been unreachable at an earlier removal. Returns the removed ids.
        """
        database = self._database
        of_people = "SELECT samples.id FROM samples JOIN people ON people.id = person WHERE name IN ({})"
        records = database.select_in(of_people, people)
        records += database.select_in("SELECT id FROM samples WHERE key IN ({})", keys)
        removed = sorted({sample_id for (sample_id,) in records})
        if removed or self.snapshots():
            database.execute_many("INSERT INTO removing VALUES (?, NULL)", ((name,) for name in people))
            database.execute_many("INSERT INTO removing VALUES (NULL, ?)", ((key,) for key in keys))
            database.select_in("INSERT INTO removing SELECT NULL, key FROM samples WHERE id IN ({})", removed)
            database.execute("UPDATE state SET unscrubbed = 1")
        if removed:
            self._delete(removed)
            self._increment_revision(removed=True)
        return removed

    def missing(self, people: Sequence[str], keys: Sequence[str]) -> tuple[list[str], list[str]]:
        """Returns the people and the keys that are not enrolled."""
        enrolled = self.ids_by_name(people)
        enrolled_keys = {key for (key,) in self._database.select_in("SELECT key FROM samples WHERE key IN ({})", keys)}
        return [name for name in people if name not in enrolled], [key for key in keys if key not in enrolled_keys]

    def snapshots(self) -> list[Path]:
        """Returns the folders of the snapshots of this gallery."""
        return [Path(path) for (path,) in self._database.execute("SELECT path FROM snapshots ORDER BY path")]

    def removing(self) -> tuple[list[str], list[str]]:
        """Returns people and keys whose removal is committed here but may be pending in snapshots."""
        records = self._database.execute("SELECT person, key FROM removing")
        return [person for person, _ in records if person is not None], [key for _, key in records if key is not None]

    def copy_to(self, path: Path) -> None:
        """Copies the live content to a new database and records it as a snapshot first. Raises UserError on failure."""
        with self.write_transaction():
            self._database.execute("INSERT OR IGNORE INTO snapshots VALUES (?)", (str(path.parent.absolute()),))
        try:
            # VACUUM INTO accepts an empty file and keeps its mode.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        except OSError as error:
            raise UserError(f"{path}: cannot be created ({error.strerror})") from error
        self._database.execute("VACUUM INTO ?", (str(path),))
        copy = Database.open(path, write=True)
        with copy.transaction():
            copy.execute("DELETE FROM snapshots")
        copy.close()

    def scrub(self) -> bool:
        """Rewrites the file and truncates the log so that neither holds bytes of removed samples.

        SQLite's secure_delete overwrites deleted rows, but not every copy left by moving rows between pages of tables
        and indexes: after 60 small removals, 3 of 6,000 removed texts were still in the file. Returns False if a reader
        prevents the truncation of the log; call it again then.
        """
        self._database.execute("DELETE FROM removing")
        self._database.execute("VACUUM")
        (is_busy, *_) = self._database.fetch_one("PRAGMA wal_checkpoint(TRUNCATE)")
        if not is_busy:
            self._database.execute("UPDATE state SET unscrubbed = 0")
        return not is_busy

    def _delete(self, ids: Sequence[int]) -> None:
        """Deletes samples, and people without samples left."""
        database = self._database
        for start in range(0, len(ids), READ_ROWS):
            part = ids[start : start + READ_ROWS]
            rows = self._rows(database.select_in("SELECT id, person, embedding FROM samples WHERE id IN ({})", part))
            database.select_in("DELETE FROM samples WHERE id IN ({})", part)
            without_samples = (
                "FROM people WHERE id IN ({}) AND NOT EXISTS (SELECT 1 FROM samples WHERE person = people.id)",
                sorted(set(rows.person_N.tolist())),
            )
            people = sum(
                count for (count,) in database.select_in("SELECT count(*) " + without_samples[0], without_samples[1])
            )
            database.select_in("DELETE " + without_samples[0], without_samples[1])
            self._update_counts(-people, -len(rows), -rows.digest())

    def _update_counts(self, people: int, samples: int, digest: int) -> None:
        self._database.execute(
            "UPDATE state SET people = people + ?, samples = samples + ?, digest = ?",
            (people, samples, add_digest(self.state().digest, digest)),
        )

    def _increment_revision(self, *, removed: bool) -> None:
        self._database.execute("UPDATE state SET revision = revision + 1, removals = removals + ?", (removed,))

    def _rows(self, records: Sequence[tuple]) -> SampleRows:
        sample_N, person_N, embeddings = zip(*records, strict=True)
        return SampleRows(np.array(sample_N), np.array(person_N), self._matrix(embeddings))

    def _matrix(self, embeddings: Sequence[bytes]) -> np.ndarray:
        return np.frombuffer(b"".join(embeddings), "<f4").reshape(len(embeddings), self.model_spec.dimension)
