"""SQLite database of a gallery: file, schema, connection and transactions."""

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from facelt.errors import UserError
from facelt.gallery.free_space import SharedDescriptor, logged_pages, zero_free_space

SCHEMA_VERSION = 2
# Its tables have no digests but that of the embeddings; opened for writing, it is converted.
CONVERTIBLE_VERSION = 1
# "FLTG", the application id in the header of the file.
APPLICATION = 0x464C5447
# A row of 512 float32 takes just over half of SQLite's default page, which would waste the other half.
PAGE_BYTES = 16384
CACHE_KIB = 65536
# Time that a statement waits for another process.
BUSY_TIMEOUT_SECONDS = 30
# Parameters of one statement; SQLite's limit is 32766.
MAX_PARAMETERS = 10_000

# Characters of a message of SQLite that are shown: it may quote the statements of a damaged file.
MAX_QUOTED = 120
RESTORE_ADVICE = "restore a snapshot, or create the gallery again and enrol its people"
# Advice for SQLite errors, by a part of their message; all others are those of a damaged file.
ERROR_HINTS = {
    "locked": "another process holds a lock on it",
    "unable to open": "reading needs write access to its folder as well: copy the gallery to a writable folder",
    "interrupted": "repeat the command",
    "is full": "free some space and repeat the command",
    "disk I/O error": "the disk is full or faulty: free some space and repeat the command, or restore a snapshot",
    "readonly": f"the file or its folder is write-protected, or it is damaged: {RESTORE_ADVICE}",
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
# Columns that the tables of CONVERTIBLE_VERSION lack.
DIGEST_COLUMNS_SQL = (
    "ALTER TABLE settings ADD COLUMN digest TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE state ADD COLUMN text_digest TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE state ADD COLUMN record_digest TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE state ADD COLUMN state_digest TEXT NOT NULL DEFAULT ''",
)


class Database:
    """Connection in autocommit mode outside `transaction`. SQLite errors are raised as UserError.

    `changed_pages` are the pages that transactions have changed since their free space was zeroed, None if unknown.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.version = SCHEMA_VERSION
        self.changed_pages: set[int] | None = None
        self._descriptor = _descriptor(path)
        try:
            self._connection = _connection(path)
        except UserError:
            self._descriptor.close()
            raise

    @classmethod
    def create(cls, path: Path) -> "Database":
        """Creates a file with empty tables, accessible to its owner only; it can be opened after `seal`."""
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            raise UserError(f"{path}: exists already; choose another folder or remove it") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be created ({error.strerror})") from error
        database = cls(path)
        database.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        database.execute("PRAGMA auto_vacuum = NONE")
        database._configure()
        with database.transaction():
            for statement in (*SCHEMA_SQL.split(";"), *DIGEST_COLUMNS_SQL):
                database.execute(statement)
            database.execute(f"PRAGMA application_id = {APPLICATION}")
        return database

    def seal(self) -> None:
        """Marks the creation, or the conversion to this version, as complete."""
        self.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        self.version = SCHEMA_VERSION

    @classmethod
    def open(cls, path: Path, *, write: bool) -> "Database":
        """Opens an existing file. Raises UserError if it is missing, damaged or of an unknown version."""
        if not path.is_file():
            raise UserError(
                f"{path.parent}: no gallery here ({path.name} is missing); create one with `facelt gallery create`"
            )
        database = cls(path)
        try:
            database._read_version()
            database._configure()
            if not write:
                database.execute("PRAGMA query_only = ON")
        except UserError:
            database.close()
            raise
        return database

    def close(self) -> None:
        self._connection.close()
        self._descriptor.close()

    @contextmanager
    def transaction(self, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
        """Runs the block as one transaction: durable at its end, or rolled back."""
        self.execute(begin)
        try:
            yield
            self.execute("COMMIT")
            if self.changed_pages is not None and begin == "BEGIN IMMEDIATE":
                self._record_changes()
        except BaseException:
            if self._connection.in_transaction:
                # The file stays as it was even if a damaged or full one refuses the statement.
                with suppress(sqlite3.Error):
                    self._connection.rollback()
            raise

    def execute(self, statement: str, values: Sequence[Any] = (), types: Sequence[type] = ()) -> list[tuple]:
        """Runs a statement and returns all rows; with `types`, raises UserError unless the columns hold these."""
        try:
            rows = self._connection.execute(statement, values).fetchall()
        # A damaged file may quote text that is no UTF-8, or claim values that no memory holds.
        except (sqlite3.Error, UnicodeError, MemoryError) as error:
            raise self._translate(error) from error
        for column, expected in zip(zip(*rows, strict=True), types, strict=True) if rows and types else ():
            if set(map(type, column)) != {expected}:
                raise self.damaged(f"a value is not of type {expected.__name__}")
        return rows

    def execute_many(self, statement: str, values: Iterable[Sequence[Any]]) -> None:
        """Runs a statement with each row of values."""
        try:
            self._connection.executemany(statement, values)
        except sqlite3.Error as error:
            raise self._translate(error) from error

    def truncate_log(self) -> bool:
        """Writes the log to the file and empties it; returns False if a reader prevents that."""
        (is_busy, *_) = self.fetch_one("PRAGMA wal_checkpoint(TRUNCATE)")
        return not is_busy

    def zero_changed_pages(self) -> None:
        """Overwrites the free space of all changed pages, in a transaction that has written nothing yet.

        Call `truncate_log` before. Raises UserError if the file is damaged, or cannot be written.
        """
        try:
            if self._log.stat().st_size:
                raise UserError(f"{self.path}: another program has written to the database; repeat the command")
            zero_free_space(self._descriptor.number, self.changed_pages)
        except ValueError as error:
            raise self.damaged(str(error)) from error
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from error

    def forget_changes(self) -> None:
        """Begins a new record of changed pages, after the transaction with `zero_changed_pages`."""
        self.changed_pages = set()
        # The pages in memory still have the old free space, and would be written with it.
        self.execute("PRAGMA shrink_memory")

    def damaged(self, detail: str, advice: str = RESTORE_ADVICE) -> UserError:
        """Returns an error that names the file, the damage and what to do."""
        return UserError(f"{self.path}: is damaged: {detail}; {advice}")

    def fetch_one(self, statement: str, values: Sequence[Any] = ()) -> tuple | None:
        """Returns the first row of a statement, None if there is none."""
        return next(iter(self.execute(statement, values)), None)

    def select_in(self, statement: str, values: Sequence[Any], types: Sequence[type] = ()) -> list[tuple]:
        """Returns all rows of a statement with `IN ({})`, for any number of values; `types` as for `execute`."""
        rows: list[tuple] = []
        for start in range(0, len(values), MAX_PARAMETERS):
            part = values[start : start + MAX_PARAMETERS]
            rows += self.execute(statement.format(",".join("?" * len(part))), part, types)
        return rows

    @property
    def _log(self) -> Path:
        return self.path.with_name(f"{self.path.name}-wal")

    def _record_changes(self) -> None:
        """Records the pages of a committed transaction: it has appended them to the log."""
        try:
            logged = logged_pages(self._log)
        except OSError:
            logged = set()
        # Without pages in the log, another program has emptied it.
        self.changed_pages = self.changed_pages | logged if logged else None

    def _read_version(self) -> None:
        """Reads the version. Raises UserError if the file is no gallery, incomplete or of an unknown version."""
        (application,), (self.version,) = (
            self.fetch_one(f"PRAGMA {name}") for name in ("application_id", "user_version")
        )
        if application != APPLICATION:
            raise self.damaged("its header is not that of a gallery")
        if self.version == 0:
            if self.execute("SELECT name FROM sqlite_master") and self.execute("SELECT id FROM samples LIMIT 1"):
                raise self.damaged("its header lacks the version")
            raise UserError(f"{self.path}: its creation was interrupted; remove the folder and create it again")
        if self.version not in (SCHEMA_VERSION, CONVERTIBLE_VERSION):
            raise UserError(
                f"{self.path}: has schema {self.version}, this version reads schema {SCHEMA_VERSION}; use the version "
                "of facelt that wrote it, or restore a snapshot if the file is damaged"
            )

    def _configure(self) -> None:
        for setting in (
            *("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"),
            *("trusted_schema = OFF", f"cache_size = -{CACHE_KIB}"),
        ):
            self.execute(f"PRAGMA {setting}")

    def _translate(self, error: Exception) -> UserError:
        message = " ".join(str(error).split())[:MAX_QUOTED] or type(error).__name__
        damage = f"the file is damaged: {RESTORE_ADVICE}"
        advice = next((hint for text, hint in ERROR_HINTS.items() if text in message), damage)
        return UserError(f"{self.path}: {message}; {advice}")


def _descriptor(path: Path) -> SharedDescriptor:
    try:
        return SharedDescriptor(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror})") from error


def _connection(path: Path) -> sqlite3.Connection:
    try:
        # Opening never creates a file; transactions are explicit.
        uri = path.absolute().as_uri() + "?mode=rw"
        return sqlite3.connect(
            uri, uri=True, isolation_level=None, timeout=BUSY_TIMEOUT_SECONDS, check_same_thread=False
        )
    except sqlite3.Error as error:
        raise UserError(f"{path}: cannot be opened ({error})") from error
