"""The collections of a Milvus, row by row: what a gallery there asks of the server, its errors in one line each.

U probes, D feature.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from facelt.errors import UserError

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
