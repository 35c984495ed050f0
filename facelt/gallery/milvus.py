"""Gallery in Milvus, for more people than one machine holds: three collections.

    NAME             samples: embedding, key, person, metadata, provenance
    NAME_templates   people: mean and number of their embeddings
    NAME_settings    JSON by name: the model specification, thresholds

Row ids are SHA-256 hashes of names, so no name is ever part of an expression. Indexes are FLAT, which is exact;
searches of a collection with another index report `exact` as false. Milvus erases removed rows when it compacts, which
is requested and done asynchronously; removals are not applied to snapshots. See docs/milvus.md for the guarantees.

P probes, K people, N samples, U some probes, T samples of one probe, D feature.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from facelt.errors import UserError
from facelt.gallery.backend import Candidate, GalleryCounts, NearestSamples, RemovalResult, SearchResult, rank_people
from facelt.gallery.local import LocalGallery
from facelt.gallery.model_spec import ModelSpec
from facelt.gallery.samples import (
    MAX_METADATA_LENGTH,
    MAX_NAME_LENGTH,
    MIN_NORM,
    Samples,
    validated_embeddings,
    validated_samples,
)
from facelt.search.exact import cosine_error_bound, similarities

_TOKEN_VARIABLE = "MILVUS_TOKEN"
# Message of Milvus Lite for a file that another process has open.
_LITE_LOCKED = "Open local milvus failed"
# Rows per request: well below the 64 MB limit of a server.
REQUEST_ROWS = 1000


class MilvusCollections:
    """Collections of rows with an `id` and a vector `row`. Server errors are raised as UserError."""

    def __init__(self, uri: str) -> None:
        from pymilvus import MilvusClient

        self._uri = uri
        # Both log a traceback for every error that they raise.
        for name in ("pymilvus", "milvus_lite"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        with self._translate():
            self._client = MilvusClient(uri, token=os.environ.get(_TOKEN_VARIABLE, ""))

    def close(self) -> None:
        self._client.close()

    def load(self, name: str) -> None:
        """Loads a collection into memory, which is needed after a restart of the server."""
        with self._translate():
            self._client.load_collection(name)

    def exists(self, name: str) -> bool:
        with self._translate():
            return self._client.has_collection(name)

    def create(self, name: str, fields: Mapping[str, Any], dimension: int) -> None:
        """Creates a collection with a FLAT index; a field is a Milvus type or the largest number of bytes of a text."""
        from pymilvus import DataType

        with self._translate():
            schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("id", DataType.VARCHAR, max_length=64, is_primary=True)
            for field, kind in fields.items():
                if isinstance(kind, DataType):
                    schema.add_field(field, kind)
                else:
                    schema.add_field(field, DataType.VARCHAR, max_length=kind)
            schema.add_field("row", DataType.FLOAT_VECTOR, dim=dimension)
            index = self._client.prepare_index_params()
            # For unit embeddings the inner product is the cosine.
            index.add_index("row", index_type="FLAT", metric_type="IP", index_name="row")
            self._client.create_collection(name, schema=schema, index_params=index, consistency_level="Strong")

    def is_flat(self, name: str) -> bool:
        with self._translate():
            return self._client.describe_index(name, index_name="row")["index_type"] == "FLAT"

    def count(self, name: str) -> int:
        with self._translate():
            return int(self._client.query(name, filter="", output_fields=["count(*)"])[0]["count(*)"])

    def upsert(self, name: str, rows: Sequence[dict]) -> None:
        for start in range(0, len(rows), REQUEST_ROWS):
            with self._translate():
                self._client.upsert(name, list(rows[start : start + REQUEST_ROWS]))

    def delete(self, name: str, ids: Sequence[str]) -> None:
        for start in range(0, len(ids), REQUEST_ROWS):
            with self._translate():
                self._client.delete(name, ids=list(ids[start : start + REQUEST_ROWS]))

    def get(self, name: str, ids: Sequence[str], *fields: str) -> list[dict]:
        rows: list[dict] = []
        for start in range(0, len(ids), REQUEST_ROWS):
            with self._translate():
                part = list(ids[start : start + REQUEST_ROWS])
                rows += self._client.get(name, ids=part, output_fields=["id", *fields])
        return rows

    def query(self, name: str, filter_: str, *fields: str) -> Iterator[list[dict]]:
        with self._translate():
            pages = self._client.query_iterator(
                name, batch_size=REQUEST_ROWS, filter=filter_, output_fields=["id", *fields]
            )
            try:
                while batch := pages.next():
                    yield batch
            finally:
                pages.close()

    def search(self, name: str, probe_UD: np.ndarray, t: int, *fields: str, filter_: str = "") -> list:
        """Returns the t nearest rows of each probe by inner product, with these fields but without vectors."""
        with self._translate():
            return self._client.search(
                name,
                data=list(probe_UD),
                anns_field="row",
                limit=t,
                filter=filter_,
                search_params={"metric_type": "IP"},
                output_fields=list(fields),
            )

    def compact(self, name: str) -> None:
        """Requests the erasure of deleted rows, which the server does asynchronously."""
        with self._translate():
            self._client.flush(name)
            self._client.compact(name)

    @contextmanager
    def _translate(self) -> Iterator[None]:
        from pymilvus import MilvusException

        try:
            yield
        except (MilvusException, ValueError) as error:
            message = " ".join(str(getattr(error, "message", error)).split())
            hint = "; only one process at a time can open a Milvus Lite file" if message == _LITE_LOCKED else ""
            raise UserError(f"milvus:{self._uri}: {message}{hint}") from error


_DEFAULT_COLLECTION = "facelt"
# People fetched in addition to k: the server rounds scores to float32, exact scores decide the k best.
_EXTRA_PEOPLE = 6
# People whose samples are fetched at once.
_PEOPLE_PER_QUERY = 256
# Milvus limits texts in bytes.
_NAME_BYTES = 4 * MAX_NAME_LENGTH
_COLLECTION = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,200}")


class MilvusGallery:
    """See Backend. `location` is the URI of a server or a Milvus Lite file, optionally with `#COLLECTION`."""

    def __init__(self, location: str, *, _model_spec: ModelSpec | None = None) -> None:
        self._uri, _, name = location.partition("#")
        self._name = name or _DEFAULT_COLLECTION
        if not _COLLECTION.fullmatch(self._name):
            raise UserError(f"milvus:{location}: {self._name!r} is not a valid collection name")
        self._collections = MilvusCollections(self._uri)
        exists = self._collections.exists(self._settings)
        if _model_spec is not None:
            if exists:
                raise UserError(
                    f"milvus:{location}: a gallery {self._name!r} exists already; choose another #COLLECTION"
                )
            self._create_collections(_model_spec)
        elif not exists:
            raise UserError(
                f"milvus:{location}: no gallery {self._name!r} here; create one with `facelt gallery create`"
            )
        else:
            for name in (self._name, self._templates, self._settings):
                self._collections.load(name)
        model_spec = self.setting("contract")
        if model_spec is None:
            raise UserError(f"milvus:{location}: the creation of {self._name!r} was interrupted; drop its collections")
        self.model_spec = ModelSpec.from_dict(model_spec)

    @classmethod
    def create(cls, location: str, model_spec: ModelSpec) -> "MilvusGallery":
        """Creates a gallery. Raises UserError if one of that name exists."""
        return cls(location, _model_spec=model_spec)

    def close(self) -> None:
        self._collections.close()

    def upsert(self, samples: Samples) -> None:
        samples = validated_samples(samples, self.model_spec)
        if not len(samples):
            return
        ids = [_id(key) for key in samples.keys]
        changed = {
            row["person_id"]: row["person"] for row in self._collections.get(self._name, ids, "person", "person_id")
        }
        changed |= {_id(person): person for person in samples.people}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        columns = (ids, samples.keys, samples.people, *samples.json_columns(), samples.embedding_ND)
        rows = [
            {
                **{"id": row_id, "key": key, "person": person, "person_id": _id(person), "metadata": metadata},
                **{"provenance": provenance, "enrolled": now, "row": row_D},
            }
            for row_id, key, person, metadata, provenance, row_D in zip(*columns, strict=True)
        ]
        self._collections.upsert(self._name, rows)
        self._update_templates(changed)

    def remove(self, people: Sequence[str] = (), keys: Sequence[str] = ()) -> RemovalResult:
        people, keys = list(dict.fromkeys(people)), list(dict.fromkeys(keys))
        by_key = self._collections.get(self._name, [_id(key) for key in keys], "key", "person", "person_id")
        by_person = self._samples_of([_id(person) for person in people], "key", "person")
        enrolled_keys, enrolled_people = {row["key"] for row in by_key}, {row["person"] for row in by_person}
        removed = {row["id"]: row for row in (*by_key, *by_person)}
        self._collections.delete(self._name, list(removed))
        self._update_templates({row["person_id"]: row["person"] for row in removed.values()})
        missing_people = [person for person in people if person not in enrolled_people]
        missing_keys = [key for key in keys if key not in enrolled_keys]
        return RemovalResult(len(removed), missing_people, missing_keys, self._compact() if removed else [])

    def search(
        self, probe_PD: np.ndarray, k: int, *, templates: bool = False, exact: bool = True, floor: float = -np.inf
    ) -> SearchResult:
        probe_PD = validated_embeddings(probe_PD, self.model_spec)
        name = self._templates if templates else self._name
        is_flat = self._collections.is_flat(name)
        if exact and not is_flat:
            raise UserError(
                f"milvus:{self._uri}: the index of {name!r} is not FLAT, so people may be missing from results"
            )
        count = self.count()
        compared = count.people if templates else count.samples
        hit_rows: list[tuple[str, str, str | None]] = []
        row_number: dict[str, int] = {}
        person_number: dict[str, int] = {}

        def nearest(probe_UD: np.ndarray, t: int) -> NearestSamples:
            result = NearestSamples(np.full((len(probe_UD), t), -np.inf), *np.full((2, len(probe_UD), t), -1))
            for row, hits in enumerate(self._hits(name, probe_UD, t, templates)):
                for column, hit in enumerate(hits):
                    entity = hit["entity"]
                    if hit["id"] not in row_number:
                        row_number[hit["id"]] = len(hit_rows)
                        hit_rows.append((hit["id"], entity["person"], None if templates else entity["key"]))
                    result.score_PT[row, column] = hit["distance"]
                    result.sample_PT[row, column] = row_number[hit["id"]]
                    result.person_PT[row, column] = person_number.setdefault(entity["person"], len(person_number))
            return result

        # The server rounds scores; the error bound depends on norms, which are only known for unit embeddings.
        floor = floor - 2 * cosine_error_bound(self.model_spec.dimension) if self.model_spec.is_unit else -np.inf
        candidates = min(k + _EXTRA_PEOPLE, count.people)
        best, is_exact = rank_people(probe_PD, candidates, nearest, samples=compared, floor=floor)
        return SearchResult(self._exact_candidates(name, probe_PD, best, hit_rows, k), is_flat and is_exact, compared)

    def count(self) -> GalleryCounts:
        return GalleryCounts(self._collections.count(self._templates), self._collections.count(self._name))

    def people(self) -> Iterator[tuple[str, int]]:
        batches = self._collections.query(self._templates, "", "person", "samples")
        yield from sorted((row["person"], row["samples"]) for batch in batches for row in batch)

    def snapshot(self, path: Path) -> None:
        with closing(LocalGallery.create(path, self.model_spec)) as copy:
            for batch in self._collections.query(self._name, "", "key", "person", "metadata", "provenance", "row"):
                copy.upsert(_samples(batch))

    def setting(self, name: str) -> Any:
        rows = self._collections.get(self._settings, [_id(name)], "value")
        return json.loads(rows[0]["value"]) if rows else None

    def set_setting(self, name: str, value: Any) -> None:
        self._collections.upsert(self._settings, [{"id": _id(name), "value": json.dumps(value), "row": [1.0, 0.0]}])

    @property
    def _templates(self) -> str:
        return f"{self._name}_templates"

    @property
    def _settings(self) -> str:
        return f"{self._name}_settings"

    def _create_collections(self, model_spec: ModelSpec) -> None:
        from pymilvus import DataType

        texts = {
            "key": _NAME_BYTES,
            "person_id": 64,
            "metadata": MAX_METADATA_LENGTH,
            "provenance": MAX_METADATA_LENGTH,
            "enrolled": 40,
        }
        person = {"person": _NAME_BYTES}
        template = {"samples": DataType.INT64, "is_mean": DataType.BOOL}
        # The settings are written last: they mark the creation as complete.
        self._collections.create(self._name, {**texts, **person}, model_spec.dimension)
        self._collections.create(self._templates, {**person, **template}, model_spec.dimension)
        self._collections.create(self._settings, {"value": 65535}, 2)
        self.set_setting("contract", model_spec.to_dict())

    def _samples_of(self, person_ids: Sequence[str], *fields: str) -> list[dict]:
        rows = []
        for start in range(0, len(person_ids), _PEOPLE_PER_QUERY):
            # Quoted hex digits, as in JSON.
            filter_ = f"person_id in {json.dumps(person_ids[start : start + _PEOPLE_PER_QUERY])}"
            batches = self._collections.query(self._name, filter_, "person_id", *fields)
            rows += [row for batch in batches for row in batch]
        return rows

    def _hits(self, name: str, probe_UD: np.ndarray, t: int, templates: bool) -> list:
        # With vectors the response would be too large; those of the best are fetched afterwards.
        if templates:
            return self._collections.search(name, probe_UD, t, "person", filter_="is_mean == true")
        return self._collections.search(name, probe_UD, t, "person", "key")

    def _exact_candidates(
        self, name: str, probe_PD: np.ndarray, best: Sequence[NearestSamples], hit_rows: Sequence[tuple], k: int
    ) -> list[list[Candidate]]:
        """Returns the k best candidates of each probe by exact scores."""
        numbers = sorted({int(number) for nearest in best for number in nearest.sample_PT[0]})
        rows = self._collections.get(name, [hit_rows[number][0] for number in numbers], "row")
        vector_of = {row["id"]: row["row"] for row in rows}
        results = []
        for probe_D, nearest in zip(probe_PD, best, strict=True):
            # Samples removed in the meantime are skipped.
            hits = [hit_rows[n] for n in nearest.sample_PT[0].tolist() if hit_rows[n][0] in vector_of]
            row_TD = np.array([vector_of[row_id] for row_id, *_ in hits], dtype=np.float32)
            row_TD = row_TD.reshape(len(hits), self.model_spec.dimension)
            pairs = np.zeros(len(hits), dtype=np.int64), row_TD, np.arange(len(hits))
            score_T = similarities(probe_D[None], *pairs, cosine=self.model_spec.is_unit) if hits else np.empty(0)
            scored = zip(score_T.tolist(), hits, strict=True)
            candidates = [Candidate(person, score, key) for score, (_, person, key) in scored]
            results.append(sorted(candidates, key=lambda candidate: -candidate.score)[:k])
        return results

    def _update_templates(self, people: Mapping[str, str]) -> None:
        """Recomputes the templates of these people, given by id; deletes those of people without samples."""
        vectors: dict[str, list] = {person_id: [] for person_id in people}
        for row in self._samples_of(list(people), "row"):
            vectors[row["person_id"]].append(row["row"])
        rows, removed = [], []
        for person_id, person in people.items():
            if not vectors[person_id]:
                removed.append(person_id)
                continue
            mean_D = np.mean(np.array(vectors[person_id], dtype=np.float32), axis=0, dtype=np.float64)
            norm = float(np.linalg.norm(mean_D))
            is_mean = norm >= MIN_NORM
            if is_mean and self.model_spec.is_unit:
                mean_D /= norm
            row = {"id": person_id, "person": person, "samples": len(vectors[person_id]), "is_mean": is_mean}
            rows.append({**row, "row": mean_D.astype(np.float32)})
        self._collections.upsert(self._templates, rows)
        self._collections.delete(self._templates, removed)

    def _compact(self) -> list[str]:
        try:
            for name in (self._name, self._templates):
                self._collections.compact(name)
        except UserError as error:
            return [f"removed samples are no longer found, but their bytes remain: {error}"]
        return []


def _id(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _samples(rows: Sequence[dict]) -> Samples:
    fields = ("key", "person", "metadata", "provenance", "row")
    keys, people, metadata, provenance, row_ND = ([row[field] for row in rows] for field in fields)
    objects = [list(map(json.loads, column)) for column in (metadata, provenance)]
    return Samples(keys, people, np.array(row_ND, dtype=np.float32), *objects)
