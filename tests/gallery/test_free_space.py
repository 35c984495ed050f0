"""Free space of database pages: zeroed without a change of content, on healthy files only.

B bytes of a file.
"""

import fcntl
import os
import re
import sqlite3
import struct
from contextlib import closing

import numpy as np
import pytest

from facelt.errors import UserError
from facelt.gallery.free_space import SharedDescriptor, logged_pages, zero_free_space
from facelt.gallery.sqlite import Database

PAGE = 1024


@pytest.fixture
def crowded(tmp_path):
    """A database with an index, overflow pages and freed pages, without secure_delete; its words before and after."""
    path = tmp_path / "crowded.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size = {PAGE}")
        connection.execute("PRAGMA secure_delete = OFF")
        connection.execute("CREATE TABLE words(id INTEGER PRIMARY KEY, word TEXT UNIQUE, long TEXT)")
        rows = [(row, f"word-{row * 7919 % 10007:05d}", f"long-{row:05d}" * (1 + row % 150)) for row in range(800)]
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO words VALUES (?, ?, ?)", rows)
        connection.execute("DELETE FROM words WHERE id % 3 AND id < 600")
        # Freed overflow pages are filled again from a part of the list of free pages.
        connection.execute("DELETE FROM words WHERE id BETWEEN 600 AND 680")
        connection.execute("COMMIT")
        kept = dict(connection.execute("SELECT word, long FROM words"))
    return path, {word: long for _, word, long in rows}, kept


def words_in(content):
    return {match.decode() for match in re.findall(rb"(?:word|long)-\d{5}", content)}


def zeroed_bytes(path, pages=None):
    with closing(SharedDescriptor(path)) as descriptor:
        return zero_free_space(descriptor.number, pages)


def test_zeros_replace_deleted_rows_and_nothing_else(crowded):
    path, rows, kept = crowded
    removed = rows.keys() - kept.keys()
    before = path.read_bytes()
    assert len(removed & words_in(before)) > 100
    assert zeroed_bytes(path) > 10_000
    after = path.read_bytes()
    assert len(after) == len(before)
    old_B, new_B = (np.frombuffer(content, np.uint8) for content in (before, after))
    assert ((new_B == 0) | (new_B == old_B)).all()
    assert words_in(after) == kept.keys() | {long[:10] for long in kept.values()}
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert dict(connection.execute("SELECT word, long FROM words")) == kept
    assert zeroed_bytes(path) == 0


def test_only_the_pages_that_are_named_are_changed(crowded):
    path, *_ = crowded
    before = path.read_bytes()
    pages = {2, 3, 5, 10**6}
    zeroed_bytes(path, pages)
    after = path.read_bytes()
    old_B, new_B = (np.frombuffer(content, np.uint8) for content in (before, after))
    changed = set((np.flatnonzero(old_B != new_B) // PAGE + 1).tolist())
    assert changed
    assert changed <= pages


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, b"X", "header is not that of a database"),
        (52, b"\0\0\0\1", "auto_vacuum is on"),
        (PAGE, b"\7", "page 2 is of no known kind"),
        (PAGE + 1, b"\0\1", "page 2 has a free block outside its content"),
        (PAGE + 3, b"\xff\xff", "page 2 has overlapping cells"),
        (PAGE + 5, b"\3\xfe", "page 2 has a cell outside its content"),
        (32, b"\0\xff\xff\xff", "page 16777215 cannot be a part of its list"),
    ],
)
def test_a_damaged_page_is_named_and_not_written_to(crowded, offset, value, message):
    path, *_ = crowded
    content = bytearray(path.read_bytes())
    content[offset : offset + len(value)] = value
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        zeroed_bytes(path, {2})
    assert path.read_bytes() == content


def test_the_pages_of_a_log_are_those_of_its_frames(tmp_path):
    path, log = tmp_path / "logged.sqlite", tmp_path / "logged.sqlite-wal"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size = {PAGE}")
        connection.execute("PRAGMA journal_mode = WAL")
        log.touch()
        assert logged_pages(log) == set()
        connection.execute("CREATE TABLE words(word TEXT)")
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO words VALUES (?)", [("x" * 300,)] * 40)
        connection.execute("COMMIT")
        content = log.read_bytes()
        pages = {struct.unpack_from(">I", content, at)[0] for at in range(32, len(content), 24 + PAGE)}
        assert len(pages) > 10
        assert logged_pages(log) == pages


def is_locked(path):
    """Returns True if another process cannot lock the file."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    with path.open("r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os._exit(1)
        os._exit(0)


def test_a_closed_descriptor_takes_no_lock_along_while_another_is_open(tmp_path):
    path = tmp_path / "locked"
    path.write_bytes(b"content")
    first, second = SharedDescriptor(path), SharedDescriptor(path)
    fcntl.lockf(first.number, fcntl.LOCK_EX)
    assert first.number == second.number
    first.close()
    first.close()
    assert is_locked(path)
    second.close()
    assert not is_locked(path)


def test_a_log_that_another_program_has_written_is_refused(gallery):
    database = gallery._store._database
    gallery.set_setting("number", 1)
    with pytest.raises(UserError, match="another program has written to the database; repeat"), database.transaction():
        database.zero_changed_pages()
    assert database.truncate_log()
    with database.transaction():
        database.zero_changed_pages()


def test_changes_are_unknown_if_another_program_empties_the_log(gallery):
    database = gallery._store._database
    gallery.set_setting("number", 1)
    assert database.changed_pages
    other = Database.open(database.path, write=True)
    with closing(other):
        with database.transaction():
            pass
        assert other.truncate_log()
        with database.transaction():
            pass
    assert database.changed_pages is None
