"""The collections of a Milvus, row by row: what a gallery there asks of the server, its errors in one line each.

U probes, D feature.

A gallery in a Milvus, for more people than one machine holds: two collections and one for settings.

    NAME             samples: embedding, key, person, metadata, provenance
    NAME_templates   people: the mean of their embeddings, how many these are
    NAME_settings    JSON by name: the contract, thresholds

Rows go by the SHA-256 of their names, so that no name is ever part of an expression. The indexes are FLAT, which is
exact; a collection that somebody indexed otherwise is told by `exact`. Milvus wipes what was removed when it compacts,
which is asked for and done in its own time; snapshots are not followed. docs/milvus.md says what holds and what not.

P probes, K people, N samples, U some probes, T samples of one, D feature.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from facelt.errors import UserError
from facelt.gallery.backend import Candidate, Count, Found, Nearest, Removed, best_people
from facelt.gallery.local import LocalGallery
from facelt.gallery.model_spec import Contract
from facelt.gallery.samples import LEAST_LENGTH, NAME_LENGTH, NOTE_LENGTH, Samples, checked, checked_rows
from facelt.search.exact import cosine_error_bound, similarities

TOKEN = "MILVUS_TOKEN"
# All that Milvus Lite says of a file that another process has open.
LITE_FAILED = "Open local milvus failed"
# Of one request: well below the 64 MB that a server takes.
REQUEST_ROWS = 1000


class Collections:
    """Rows by `id`, each with a vector `row`. Raises UserError where the server does."""

    def __init__(self, uri: str) -> None:
        from pymilvus import MilvusClient

        self._uri = uri
        # They print a traceback of every error that they raise.
        for name in ("pymilvus", "milvus_lite"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        with self._explained():
            self._client = MilvusClient(uri, token=os.environ.get(TOKEN, ""))

    def close(self) -> None:
        self._client.close()

    def load(self, name: str) -> None:
        """Makes it searchable, which it is no longer when the server was started anew."""
        with self._explained():
            self._client.load_collection(name)

    def exists(self, name: str) -> bool:
        with self._explained():
            return self._client.has_collection(name)

    def make(self, name: str, fields: Mapping[str, Any], dimension: int) -> None:
        """A collection with these fields beside: a type of Milvus, or the bytes of a text at most; indexed by FLAT."""
        from pymilvus import DataType

        with self._explained():
            schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("id", DataType.VARCHAR, max_length=64, is_primary=True)
            for field, kind in fields.items():
                if isinstance(kind, DataType):
                    schema.add_field(field, kind)
                else:
                    schema.add_field(field, DataType.VARCHAR, max_length=kind)
            schema.add_field("row", DataType.FLOAT_VECTOR, dim=dimension)
            index = self._client.prepare_index_params()
            # Unit embeddings are compared by direction, and their inner product is the cosine.
            index.add_index("row", index_type="FLAT", metric_type="IP", index_name="row")
            self._client.create_collection(name, schema=schema, index_params=index, consistency_level="Strong")

    def is_flat(self, name: str) -> bool:
        with self._explained():
            return self._client.describe_index(name, index_name="row")["index_type"] == "FLAT"

    def count(self, name: str) -> int:
        with self._explained():
            return int(self._client.query(name, filter="", output_fields=["count(*)"])[0]["count(*)"])

    def put(self, name: str, rows: Sequence[dict]) -> None:
        for start in range(0, len(rows), REQUEST_ROWS):
            with self._explained():
                self._client.upsert(name, list(rows[start : start + REQUEST_ROWS]))

    def delete(self, name: str, ids: Sequence[str]) -> None:
        for start in range(0, len(ids), REQUEST_ROWS):
            with self._explained():
                self._client.delete(name, ids=list(ids[start : start + REQUEST_ROWS]))

    def rows_of(self, name: str, ids: Sequence[str], *fields: str) -> list[dict]:
        found: list[dict] = []
        for start in range(0, len(ids), REQUEST_ROWS):
            with self._explained():
                part = list(ids[start : start + REQUEST_ROWS])
                found += self._client.get(name, ids=part, output_fields=["id", *fields])
        return found

    def batches(self, name: str, where: str, *fields: str) -> Iterator[list[dict]]:
        with self._explained():
            pages = self._client.query_iterator(
                name, batch_size=REQUEST_ROWS, filter=where, output_fields=["id", *fields]
            )
            try:
                while batch := pages.next():
                    yield batch
            finally:
                pages.close()

    def search(self, name: str, probe_UD: np.ndarray, t: int, *fields: str, where: str = "") -> list:
        """The t nearest rows of each probe by inner product, with these fields and without their vectors."""
        with self._explained():
            return self._client.search(
                name,
                data=list(probe_UD),
                anns_field="row",
                limit=t,
                filter=where,
                search_params={"metric_type": "IP"},
                output_fields=list(fields),
            )

    def compact(self, name: str) -> None:
        """Asks the server to wipe what was deleted, which it does in its own time."""
        with self._explained():
            self._client.flush(name)
            self._client.compact(name)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        from pymilvus import MilvusException

        try:
            yield
        except (MilvusException, ValueError) as error:
            said = " ".join(str(getattr(error, "message", error)).split())
            hint = "; a file of Milvus Lite is one process's at a time" if said == LITE_FAILED else ""
            raise UserError(f"milvus:{self._uri}: {said}{hint}") from error


COLLECTION = "facelt"
# People beyond k whose exact scores decide who the k best are: the server's are rounded to float32.
SPARE = 6
# Whose samples are asked for at once.
PEOPLE = 256
# Lengths are of bytes there.
_NAME_BYTES = 4 * NAME_LENGTH
_COLLECTION = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,200}")


class MilvusGallery:
    """See Backend. `where` is a server's URI or a file of Milvus Lite, with `#COLLECTION` at its end if need be."""

    def __init__(self, where: str, *, _contract: Contract | None = None) -> None:
        self._uri, _, name = where.partition("#")
        self._name = name or COLLECTION
        if not _COLLECTION.fullmatch(self._name):
            raise UserError(f"milvus:{where}: {self._name!r} cannot be the name of a collection")
        self._at = Collections(self._uri)
        exists = self._at.exists(self._settings)
        if _contract is not None:
            if exists:
                raise UserError(f"milvus:{where}: a gallery {self._name!r} exists already; choose another #COLLECTION")
            self._make(_contract)
        elif not exists:
            raise UserError(f"milvus:{where}: there is no gallery {self._name!r} here; make one with create")
        else:
            for name in (self._name, self._templates, self._settings):
                self._at.load(name)
        contract = self.setting("contract")
        if contract is None:
            raise UserError(f"milvus:{where}: the creation of {self._name!r} was cut short; drop its collections")
        self.contract = Contract.of_dict(contract)

    @classmethod
    def create(cls, where: str, contract: Contract) -> "MilvusGallery":
        """A new one. Raises UserError where one of that name exists."""
        return cls(where, _contract=contract)

    def close(self) -> None:
        self._at.close()

    def upsert(self, samples: Samples) -> None:
        samples = checked(samples, self.contract)
        if not len(samples):
            return
        ids = [_id(key) for key in samples.keys]
        touched = {row["person_id"]: row["person"] for row in self._at.rows_of(self._name, ids, "person", "person_id")}
        touched |= {_id(who): who for who in samples.people}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        columns = (ids, samples.keys, samples.people, *samples.notes(), samples.embedding_ND)
        rows = [
            {
                **{"id": number, "key": key, "person": who, "person_id": _id(who), "metadata": metadata},
                **{"provenance": provenance, "enrolled": now, "row": row_D},
            }
            for number, key, who, metadata, provenance, row_D in zip(*columns, strict=True)
        ]
        self._at.put(self._name, rows)
        self._renew_templates(touched)

    def remove(self, people: Sequence[str] = (), keys: Sequence[str] = ()) -> Removed:
        people, keys = list(dict.fromkeys(people)), list(dict.fromkeys(keys))
        by_key = self._at.rows_of(self._name, [_id(key) for key in keys], "key", "person", "person_id")
        by_person = self._samples_of([_id(who) for who in people], "key", "person")
        known_keys, known_people = {row["key"] for row in by_key}, {row["person"] for row in by_person}
        gone = {row["id"]: row for row in (*by_key, *by_person)}
        self._at.delete(self._name, list(gone))
        self._renew_templates({row["person_id"]: row["person"] for row in gone.values()})
        missing = [who for who in people if who not in known_people], [key for key in keys if key not in known_keys]
        return Removed(len(gone), *missing, self._compact() if gone else [])

    def search(
        self, probe_PD: np.ndarray, k: int, *, templates: bool = False, exact: bool = True, floor: float = -np.inf
    ) -> Found:
        probe_PD = checked_rows(probe_PD, self.contract)
        name = self._templates if templates else self._name
        is_flat = self._at.is_flat(name)
        if exact and not is_flat:
            raise UserError(f"milvus:{self._uri}: the index of {name!r} is not FLAT and may pass people over")
        count = self.count()
        compared = count.people if templates else count.samples
        seen: list[tuple[str, str, str | None]] = []
        place_of: dict[str, int] = {}
        person_of: dict[str, int] = {}

        def nearest(probe_U: np.ndarray, t: int) -> Nearest:
            found = Nearest(np.full((len(probe_U), t), -np.inf), *np.full((2, len(probe_U), t), -1))
            for row, hits in enumerate(self._hits(name, probe_PD[probe_U], t, templates)):
                for column, hit in enumerate(hits):
                    entity = hit["entity"]
                    if hit["id"] not in place_of:
                        place_of[hit["id"]] = len(seen)
                        seen.append((hit["id"], entity["person"], None if templates else entity["key"]))
                    found.score_PT[row, column] = hit["distance"]
                    found.sample_PT[row, column] = place_of[hit["id"]]
                    found.person_PT[row, column] = person_of.setdefault(entity["person"], len(person_of))
            return found

        # The server's scores are rounded; how much, lengths would tell, which only unit embeddings have in common.
        floor = floor - 2 * cosine_error_bound(self.contract.dimension) if self.contract.is_unit else -np.inf
        wanted = min(k + SPARE, count.people)
        best, is_sure = best_people(nearest, len(probe_PD), wanted, samples=compared, floor=floor)
        return Found(self._scored(name, probe_PD, best, seen, k), is_flat and is_sure, compared)

    def count(self) -> Count:
        return Count(self._at.count(self._templates), self._at.count(self._name))

    def people(self) -> Iterator[tuple[str, int]]:
        batches = self._at.batches(self._templates, "", "person", "samples")
        yield from sorted((row["person"], row["samples"]) for batch in batches for row in batch)

    def snapshot(self, path: Path) -> None:
        copy = LocalGallery.create(path, self.contract)
        try:
            for batch in self._at.batches(self._name, "", "key", "person", "metadata", "provenance", "row"):
                copy.upsert(_samples(batch))
        finally:
            copy.close()

    def setting(self, name: str) -> Any:
        rows = self._at.rows_of(self._settings, [_id(name)], "value")
        return json.loads(rows[0]["value"]) if rows else None

    def set_setting(self, name: str, value: Any) -> None:
        self._at.put(self._settings, [{"id": _id(name), "value": json.dumps(value), "row": [1.0, 0.0]}])

    @property
    def _templates(self) -> str:
        return f"{self._name}_templates"

    @property
    def _settings(self) -> str:
        return f"{self._name}_settings"

    def _make(self, contract: Contract) -> None:
        from pymilvus import DataType

        texts = {
            "key": _NAME_BYTES,
            "person_id": 64,
            "metadata": NOTE_LENGTH,
            "provenance": NOTE_LENGTH,
            "enrolled": 40,
        }
        person = {"person": _NAME_BYTES}
        template = {"samples": DataType.INT64, "is_mean": DataType.BOOL}
        # The settings come last: they are the sign that all the others are there.
        self._at.make(self._name, {**texts, **person}, contract.dimension)
        self._at.make(self._templates, {**person, **template}, contract.dimension)
        self._at.make(self._settings, {"value": 65535}, 2)
        self.set_setting("contract", contract.as_dict())

    def _samples_of(self, person_ids: Sequence[str], *fields: str) -> list[dict]:
        found = []
        for start in range(0, len(person_ids), PEOPLE):
            # Hex digits in quotes, as JSON has them.
            where = f"person_id in {json.dumps(person_ids[start : start + PEOPLE])}"
            found += [row for batch in self._at.batches(self._name, where, "person_id", *fields) for row in batch]
        return found

    def _hits(self, name: str, probe_UD: np.ndarray, t: int, templates: bool) -> list:
        # Vectors would make an answer too large; those of the best are fetched afterwards.
        if templates:
            return self._at.search(name, probe_UD, t, "person", where="is_mean == true")
        return self._at.search(name, probe_UD, t, "person", "key")

    def _scored(
        self, name: str, probe_PD: np.ndarray, best: Sequence[Nearest], seen: Sequence[tuple], k: int
    ) -> list[list[Candidate]]:
        """The candidates by exact scores."""
        places = sorted({int(place) for one in best for place in one.sample_PT[0]})
        row_of = {row["id"]: row["row"] for row in self._at.rows_of(name, [seen[place][0] for place in places], "row")}
        found = []
        for probe_D, one in zip(probe_PD, best, strict=True):
            # Whoever was removed meanwhile is left out.
            chosen = [seen[place] for place in one.sample_PT[0].tolist() if seen[place][0] in row_of]
            row_TD = np.array([row_of[number] for number, *_ in chosen], dtype=np.float32).reshape(
                len(chosen), self.contract.dimension
            )
            both = np.zeros(len(chosen), dtype=np.int64), row_TD, np.arange(len(chosen))
            score_T = similarities(probe_D[None], *both, cosine=self.contract.is_unit) if chosen else np.empty(0)
            named = zip(score_T.tolist(), chosen, strict=True)
            candidates = [Candidate(person, score, key) for score, (_, person, key) in named]
            found.append(sorted(candidates, key=lambda candidate: -candidate.score)[:k])
        return found

    def _renew_templates(self, people: Mapping[str, str]) -> None:
        """The means of these people, by their ids, as their samples are now; who has none goes."""
        vectors: dict[str, list] = {number: [] for number in people}
        for row in self._samples_of(list(people), "row"):
            vectors[row["person_id"]].append(row["row"])
        rows, gone = [], []
        for number, person in people.items():
            own = vectors[number]
            if not own:
                gone.append(number)
                continue
            mean_D = np.mean(np.array(own, dtype=np.float32), axis=0, dtype=np.float64)
            length = float(np.linalg.norm(mean_D))
            is_mean = length >= LEAST_LENGTH
            if is_mean and self.contract.is_unit:
                mean_D /= length
            row = {"id": number, "person": person, "samples": len(own), "is_mean": is_mean}
            rows.append({**row, "row": mean_D.astype(np.float32)})
        self._at.put(self._templates, rows)
        self._at.delete(self._templates, gone)

    def _compact(self) -> list[str]:
        try:
            for name in (self._name, self._templates):
                self._at.compact(name)
        except UserError as error:
            return [f"removed samples are not found any more, but their bytes stay: {error}"]
        return []


def _id(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _samples(rows: Sequence[dict]) -> Samples:
    fields = ("key", "person", "metadata", "provenance", "row")
    keys, people, metadata, provenance, row_ND = ([row[field] for row in rows] for field in fields)
    notes = [list(map(json.loads, column)) for column in (metadata, provenance)]
    return Samples(keys, people, np.array(row_ND, dtype=np.float32), *notes)
