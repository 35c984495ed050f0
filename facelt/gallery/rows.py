"""Embeddings of samples with their numbers, and the digest of any set of them. N samples, D feature."""

import hashlib
from typing import NamedTuple

import numpy as np

_MODULUS = 1 << 256


class SampleRows(NamedTuple):
    """Embeddings float32 [N,D] with the numbers of their samples and of these samples' people, int64 [N]."""

    sample_N: np.ndarray
    person_N: np.ndarray
    row_ND: np.ndarray

    def __len__(self) -> int:
        return len(self.sample_N)

    def digest(self) -> int:
        """The sum of each sample's SHA-256 of both numbers and the embedding: whatever their order, it is the same."""
        id_N2 = np.stack([self.sample_N, self.person_N], axis=1).astype("<i8")
        row_ND = np.ascontiguousarray(self.row_ND, dtype="<f4")
        digests = (hashlib.sha256(b"".join(pair)).digest() for pair in zip(id_N2, row_ND, strict=True))
        return sum(int.from_bytes(digest, "big") for digest in digests) % _MODULUS


def add_digest(digest: str, change: int) -> str:
    """A digest, as hex, after samples whose digest is `change` came or, negative, went."""
    return f"{(int(digest, 16) + change) % _MODULUS:064x}"
