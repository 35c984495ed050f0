"""Store of the people and samples of a gallery, with digests over all that a user can see.

Every change keeps four digests: of ids and embeddings; of keys, names, notes and dates; of each setting; of the other
records. `SampleStore.check_integrity` computes them again from the file. N samples, M some of them, D feature.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import astuple, dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from facelt.errors import UserError
from facelt.gallery.model_spec import ModelSpec
from facelt.gallery.samples import SampleRows, Samples, add_digest, text_digest
from facelt.gallery.sqlite import DIGEST_COLUMNS_SQL, RESTORE_ADVICE, SCHEMA_VERSION, Database

DATABASE_FILE = "gallery.sqlite"
# Samples read at once.
READ_ROWS = 4096
# Time that closing a gallery waits for readers.
CLOSING_MILLISECONDS = 1000
# Defects of one kind that are listed.
MAX_DEFECTS = 10
RECORDS_CHANGED = "its list of settings, snapshots or pending removals was changed by another program"
SETTING_ADVICE = "set it again (a threshold by facelt gallery calibrate) or restore a snapshot"


@dataclass(frozen=True)
class GalleryState:
    """State of a gallery; `gallery` is its permanent id.

    `revision` counts changes, `removals` the changes that removed samples; `unscrubbed` is non-zero while bytes of
    removed samples may remain in a file. `digest` covers ids and embeddings of all samples, `text_digest` their keys,
    names, notes and dates, `record_digest` the list of settings, the snapshots and the pending removals.
    """

    gallery: str
    revision: int
    removals: int
    digest: str
    people: int
    samples: int
    unscrubbed: int
    text_digest: str
    record_digest: str


# The setting that holds the model specification.
_MODEL_SPEC = "contract"
# The setting that holds the revision at which all free space of the file was zero.
_ZEROED = "zeroed-revision"
_STATE_TYPES = (*(str, int, int, str, int, int, int), *[str] * 3)
# Id, person and embedding.
_ROW_TYPES = (int, int, bytes)
# Records that are not samples; of a setting the name and the digest, so that a changed value can be set again.
_RECORDS_SQL = (
    "SELECT name, digest FROM settings ORDER BY name",
    "SELECT path FROM snapshots ORDER BY path",
    "SELECT person, key FROM removing ORDER BY person, key",
    "SELECT name, seq FROM sqlite_sequence ORDER BY name",
)
_TEXTS_SQL = (
    "SELECT samples.id, key, name, metadata, provenance, enrolled "
    "FROM samples LEFT JOIN people ON people.id = person WHERE samples.id "
)


class SampleStore:
    """People and samples in the database. Writers hold the lock of the gallery and use `write_transaction`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        values = self.setting(_MODEL_SPEC)
        if values is None:
            raise database.damaged("its model specification is missing")
        try:
            self.model_spec = ModelSpec.from_dict(values)
        except TypeError as error:
            raise database.damaged(f"its model specification is none of this version ({error})") from error

    @classmethod
    def create(cls, path: Path, model_spec: ModelSpec) -> "SampleStore":
        """Creates an empty store. Raises UserError if the file exists."""
        database = Database.create(path)
        try:
            with database.transaction():
                zero = f"{0:064x}"
                values = uuid.uuid4().hex, 0, 0, zero, 0, 0, 0, zero, "", ""
                database.execute("INSERT INTO state VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
                _write_setting(database, _MODEL_SPEC, json.dumps(model_spec.to_dict()))
                _write_setting(database, _ZEROED, json.dumps(0))
                store = cls(database)
                store._update_record_digests()
            database.seal()
            return store
        except BaseException:
            database.close()
            raise

    @classmethod
    def open(cls, path: Path, *, write: bool) -> "SampleStore":
        """Opens an existing store. Raises UserError if it is missing, damaged or of another version.

        With `write`, a store of the previous version is converted.
        """
        database = Database.open(path, write=write)
        try:
            if database.version == SCHEMA_VERSION:
                return cls(database)
            if write:
                return cls._convert(database)
            raise UserError(
                f"{path}: was written by an earlier version of facelt; convert it with `facelt gallery rebuild "
                f"{path.parent}`"
            )
        except BaseException:
            database.close()
            raise

    @classmethod
    def _convert(cls, database: Database) -> "SampleStore":
        """Adds the digests that the previous version did not have."""
        with database.transaction():
            for statement in DIGEST_COLUMNS_SQL:
                database.execute(statement)
            for name, value in database.execute("SELECT name, value FROM settings"):
                _write_setting(database, name, value)
            store = cls(database)
            total = sum(text_digest(records) for records in store._text_batches())
            database.execute("UPDATE state SET text_digest = ?", (add_digest("0", total),))
            store._update_record_digests()
            database.seal()
        return store

    def close(self) -> None:
        self._database.close()

    def read_transaction(self) -> AbstractContextManager[None]:
        """Returns a context in which all reads see one revision."""
        return self._database.transaction("BEGIN")

    @contextmanager
    def write_transaction(self) -> Iterator[None]:
        """Runs the block as one transaction: durable at its end, or rolled back.

        Raises UserError before it if the records were changed by other programs: new digests would cover that up.
        """
        with self._database.transaction():
            if self._record_digest() != self.state().record_digest:
                raise self._database.damaged(RECORDS_CHANGED)
            if self._database.changed_pages is None and self._is_zeroed():
                self._database.changed_pages = set()
            yield
            self._update_record_digests()

    def state(self) -> GalleryState:
        """Returns the state. Raises UserError if it was changed by other programs."""
        state, state_digest = self._stored_state()
        if _json_digest(astuple(state)) != state_digest:
            raise self._database.damaged("its counts or digests were changed by another program")
        return state

    def setting(self, name: str) -> Any:
        """Returns the value of a setting, None if there is none. Raises UserError if other programs changed it."""
        row = self._database.fetch_one("SELECT value, digest FROM settings WHERE name = ?", (name,))
        if row is None:
            return None
        value, digest = row
        if _json_digest((name, value)) != digest:
            advice = RESTORE_ADVICE if name == _MODEL_SPEC else SETTING_ADVICE
            raise self._database.damaged(f"the setting {name} was changed by another program", advice)
        return json.loads(value)

    def set_setting(self, name: str, value: Any) -> None:
        _write_setting(self._database, name, json.dumps(value))

    def rows(self, after: int = 0) -> Iterator[SampleRows]:
        """Yields the samples with ids above `after` in order of id, READ_ROWS at a time."""
        statement = "SELECT id, person, embedding FROM samples WHERE id > ? ORDER BY id LIMIT ?"
        return map(self._rows, self._batches(statement, _ROW_TYPES, after))

    def samples_by_id(self, sample_M: Sequence[int]) -> dict[int, tuple[str, str, bytes]]:
        """Returns person, key and embedding of the samples with these ids that exist."""
        records = self._database.select_in(
            "SELECT samples.id, name, key, embedding FROM samples JOIN people ON people.id = person "
            "WHERE samples.id IN ({})",
            sample_M,
            (int, str, str, bytes),
        )
        return {sample_id: tuple(values) for sample_id, *values in records}

    def names_by_id(self, person_M: Sequence[int]) -> dict[int, str]:
        """Returns the names of the people with these ids that exist."""
        return dict(self._database.select_in("SELECT id, name FROM people WHERE id IN ({})", person_M, (int, str)))

    def refuse_orphans(self) -> None:
        """Raises UserError naming a sample whose person is missing, if there is one."""
        statement = "SELECT key FROM samples WHERE NOT EXISTS (SELECT 1 FROM people WHERE people.id = person) LIMIT 1"
        if row := self._database.fetch_one(statement):
            raise self._database.damaged(f"the person of the sample {row[0]!r} is missing")

    def ids_by_name(self, names: Sequence[str]) -> dict[str, int]:
        """Returns the ids of the people with these names that are enrolled."""
        return dict(self._database.select_in("SELECT name, id FROM people WHERE name IN ({})", names))

    def people(self) -> list[tuple[str, int]]:
        """Returns the name and the number of samples of each person, sorted by name."""
        return self._database.execute(
            "SELECT name, count(*) FROM people JOIN samples ON person = people.id GROUP BY people.id ORDER BY name",
            types=(str, int),
        )

    def samples(self) -> Iterator[Samples]:
        """Yields all samples, READ_ROWS at a time."""
        statement = (
            "SELECT samples.id, key, name, embedding, metadata, provenance FROM samples "
            "JOIN people ON people.id = person WHERE samples.id > ? ORDER BY samples.id LIMIT ?"
        )
        for records in self._batches(statement, (int, str, str, bytes, str, str)):
            _, keys, people, embeddings, *columns = zip(*records, strict=True)
            try:
                objects = [[json.loads(text) for text in column] for column in columns]
            except ValueError as error:
                raise self._database.damaged(f"a note is not JSON ({error})") from error
            yield Samples(keys, people, self._matrix(embeddings), *objects)

    def check_integrity(self) -> list[str]:
        """Returns the defects of the file after reading all of it and computing all digests again."""
        defects: list[str] = []
        try:
            with self.read_transaction():
                for detail in chain(self._table_defects(), self._sample_defects()):
                    defects.append(str(self._database.damaged(detail)))
                for (name,) in self._database.execute("SELECT name FROM settings ORDER BY name", types=(str,)):
                    try:
                        self.setting(name)
                    except UserError as error:
                        defects.append(str(error))
        except UserError as error:
            defects.append(str(error))
        return defects

    def _table_defects(self) -> Iterator[str]:
        for (text,) in self._database.execute(f"PRAGMA integrity_check({MAX_DEFECTS})"):
            if text != "ok":
                yield " ".join(text.split())
        for table, row, *_ in self._database.execute("PRAGMA foreign_key_check")[:MAX_DEFECTS]:
            yield f"row {row} of {table} refers to a missing person"

    def _sample_defects(self) -> Iterator[str]:
        state, digest, samples = self.state(), 0, 0
        for rows in self.rows():
            digest, samples = digest + rows.digest(), samples + len(rows)
        (people,) = self._database.fetch_one("SELECT count(*) FROM people")
        if (people, samples) != (state.people, state.samples):
            yield f"holds {people} people and {samples} samples, recorded are {state.people} and {state.samples}"
        if add_digest("0", digest) != state.digest:
            yield "the embeddings differ from those enrolled: their digest does not match"
        if add_digest("0", sum(text_digest(records) for records in self._text_batches())) != state.text_digest:
            yield "keys, names, notes or dates differ from those enrolled: their digest does not match"
        if self._record_digest() != state.record_digest:
            yield RECORDS_CHANGED

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
        texts = *samples.json_columns(), now
        columns = sample_N.tolist(), samples.keys, person_N.tolist(), *texts, map(bytes, row_ND)
        database.execute_many("INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?, ?)", zip(*columns, strict=True))
        records = zip(sample_N.tolist(), samples.keys, samples.people, *texts, strict=True)
        digest = SampleRows(sample_N, person_N, row_ND).digest()
        self._update_counts(len(added), len(samples), digest, text_digest(records))
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
        rows = self._database.execute("SELECT path FROM snapshots ORDER BY path", types=(str,))
        return [Path(path) for (path,) in rows]

    def removing(self) -> tuple[list[str], list[str]]:
        """Returns people and keys whose removal is committed here but may be pending in snapshots."""
        records = self._database.execute("SELECT person, key FROM removing")
        return [person for person, _ in records if person is not None], [key for _, key in records if key is not None]

    def forget_snapshot(self, folder: Path) -> None:
        """Removes a snapshot from the list of those to which removals are applied."""
        with self.write_transaction():
            self._database.execute("DELETE FROM snapshots WHERE path = ?", (str(folder),))

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
        copy = SampleStore.open(path, write=True)
        with closing(copy):
            with copy.write_transaction():
                copy._database.execute("DELETE FROM snapshots")
                copy._forget_zeroed()
            copy.scrub()

    def scrub(self) -> bool:
        """Overwrites and truncates all that may hold bytes of removed samples, in the file and in its log.

        SQLite's secure_delete overwrites deleted rows, but not every copy left by moving rows between pages of tables
        and indexes: after 60 small removals, 3 of 6,000 removed texts were still in the file. The free space of the
        pages changed since the last call is zeroed; that of all pages if they are unknown: after a crash, or if the
        file was written by an earlier version of facelt. Returns False if a reader prevents the truncation of the log;
        call it again then.
        """
        database = self._database
        with self.write_transaction():
            database.execute("DELETE FROM removing")
        if not database.truncate_log():
            return False
        with self.write_transaction():
            database.zero_changed_pages()
            database.execute("UPDATE state SET unscrubbed = 0")
            _write_setting(database, _ZEROED, json.dumps(self._stored_state()[0].revision))
        database.forget_changes()
        return True

    def scrub_changes(self) -> None:
        """Does the same after other changes, so that the next removal need not read the whole file."""
        if self._database.changed_pages and not self._is_zeroed() and not self.state().unscrubbed:
            self._database.execute(f"PRAGMA busy_timeout = {CLOSING_MILLISECONDS}")
            self.scrub()

    def compact(self) -> bool:
        """Rewrites the file without its free space, then as `scrub`. Raises UserError on a full disk."""
        with self.write_transaction():
            self._forget_zeroed()
        self._database.execute("PRAGMA auto_vacuum = NONE")
        self._database.execute("VACUUM")
        return self.scrub()

    def _is_zeroed(self) -> bool:
        """Returns True if the free space of all pages was zero at this revision, and holds no removed sample."""
        with suppress(UserError):
            state = self.state()
            # A copy that is still listed as a snapshot is not complete.
            is_copy = self._database.path.parent.absolute() in self.snapshots()
            return not state.unscrubbed and not is_copy and self.setting(_ZEROED) == state.revision
        return False

    def _forget_zeroed(self) -> None:
        """Records that the free space of any page may not be zero."""
        self._database.execute("DELETE FROM settings WHERE name = ?", (_ZEROED,))
        self._database.changed_pages = None

    def _delete(self, ids: Sequence[int]) -> None:
        """Deletes samples, and people without samples left."""
        database = self._database
        for start in range(0, len(ids), READ_ROWS):
            part = ids[start : start + READ_ROWS]
            statement = "SELECT id, person, embedding FROM samples WHERE id IN ({})"
            rows = self._rows(database.select_in(statement, part, _ROW_TYPES))
            texts = text_digest(database.select_in(_TEXTS_SQL + "IN ({})", part))
            database.select_in("DELETE FROM samples WHERE id IN ({})", part)
            without_samples = (
                "FROM people WHERE id IN ({}) AND NOT EXISTS (SELECT 1 FROM samples WHERE person = people.id)",
                sorted(set(rows.person_N.tolist())),
            )
            people = sum(
                count for (count,) in database.select_in("SELECT count(*) " + without_samples[0], without_samples[1])
            )
            database.select_in("DELETE " + without_samples[0], without_samples[1])
            self._update_counts(-people, -len(rows), -rows.digest(), -texts)

    def _update_counts(self, people: int, samples: int, digest: int, texts: int) -> None:
        state, _ = self._stored_state()
        self._database.execute(
            "UPDATE state SET people = people + ?, samples = samples + ?, digest = ?, text_digest = ?",
            (people, samples, add_digest(state.digest, digest), add_digest(state.text_digest, texts)),
        )

    def _increment_revision(self, *, removed: bool) -> None:
        self._database.execute("UPDATE state SET revision = revision + 1, removals = removals + ?", (removed,))

    def _stored_state(self) -> tuple[GalleryState, str]:
        """Returns the state as it is in the file, and its digest, which a transaction updates at its end."""
        rows = self._database.execute("SELECT * FROM state", types=_STATE_TYPES)
        if len(rows) != 1:
            raise self._database.damaged(f"it has {len(rows)} states instead of one")
        return GalleryState(*rows[0][:-1]), rows[0][-1]

    def _record_digest(self) -> str:
        return _json_digest([self._database.execute(statement) for statement in _RECORDS_SQL])

    def _update_record_digests(self) -> None:
        state = replace(self._stored_state()[0], record_digest=self._record_digest())
        digests = state.record_digest, _json_digest(astuple(state))
        self._database.execute("UPDATE state SET record_digest = ?, state_digest = ?", digests)

    def _text_batches(self) -> Iterator[list[tuple]]:
        """Yields id, key, name, metadata, provenance and date of all samples, READ_ROWS at a time."""
        return self._batches(_TEXTS_SQL + "> ? ORDER BY samples.id LIMIT ?")

    def _batches(self, statement: str, types: Sequence[type] = (), after: int = 0) -> Iterator[list[tuple]]:
        """Yields the rows of a statement on samples with ids above a first parameter, READ_ROWS at a time."""
        while records := self._database.execute(statement, (after, READ_ROWS), types):
            # A damaged table may return the same rows for ever.
            if (np.diff([after, *(record[0] for record in records)]) <= 0).any():
                raise self._database.damaged("its samples are not in order of id")
            yield records
            after = records[-1][0]

    def _rows(self, records: Sequence[tuple]) -> SampleRows:
        sample_N, person_N, embeddings = zip(*records, strict=True)
        return SampleRows(np.array(sample_N), np.array(person_N), self._matrix(embeddings))

    def _matrix(self, embeddings: Sequence[bytes]) -> np.ndarray:
        if set(map(len, embeddings)) - {4 * self.model_spec.dimension}:
            raise self._database.damaged("an embedding has another dimension")
        return np.frombuffer(b"".join(embeddings), "<f4").reshape(len(embeddings), self.model_spec.dimension)


def _write_setting(database: Database, name: str, value: str) -> None:
    values = name, value, _json_digest((name, value))
    database.execute("INSERT OR REPLACE INTO settings VALUES (?, ?, ?)", values)


def _json_digest(value: Any) -> str:
    # A damaged value may be bytes, which JSON lacks.
    return hashlib.sha256(json.dumps(value, default=repr).encode()).hexdigest()
