"""The SQLite file of a gallery: its tables, and a connection with the settings and the errors that fit it."""

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from facelt.errors import UserError

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
