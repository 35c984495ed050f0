"""Fixtures of the gallery tests: small galleries and a plain reference search.

P probes, N samples, D feature.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from facelt.gallery.local import LocalGallery
from facelt.gallery.model_spec import ModelSpec
from facelt.gallery.samples import Samples

DIMENSION = 16


@pytest.fixture(scope="session")
def model_spec() -> ModelSpec:
    return ModelSpec("resnet10/oltr", "ab" * 32, "direct", DIMENSION)


@pytest.fixture
def gallery(tmp_path, model_spec):
    """An empty local gallery, open for writing."""
    made = LocalGallery.create(tmp_path / "gallery", model_spec)
    yield made
    made.close()


def some_samples(count: int, people: int, *, seed: int = 0, prefix: str = "k") -> Samples:
    """Samples with random unit embeddings; sample i is of person i modulo `people`."""
    row_ND = np.random.default_rng(seed).standard_normal((count, DIMENSION)).astype(np.float32)
    return Samples([f"{prefix}{i}" for i in range(count)], [f"person {i % people}" for i in range(count)], row_ND)


def plain_people(
    samples: Samples, probe_PD: np.ndarray, k: int, *, templates: bool = False
) -> list[list[tuple[str, float]]]:
    """Returns the k best people and their scores for each probe, by loops in float64."""

    def unit(row_ND: np.ndarray) -> np.ndarray:
        row_ND = np.asarray(row_ND, dtype=np.float64)
        return row_ND / np.linalg.norm(row_ND, axis=1, keepdims=True)

    row_ND, people = unit(samples.embedding_ND), np.array(samples.people)
    if templates:
        names = sorted(set(samples.people))
        row_ND = unit(np.stack([row_ND[people == name].mean(axis=0) for name in names]))
        people = np.array(names)
    ranking = []
    for score_N in unit(probe_PD) @ row_ND.T:
        best: dict[str, float] = {}
        for name, score in zip(people.tolist(), score_N.tolist(), strict=True):
            best[name] = max(score, best.get(name, -2.0))
        ranking.append(sorted(best.items(), key=lambda entry: -entry[1])[:k])
    return ranking


def same_people(rankings: Sequence[Sequence], expected: list[list[tuple[str, float]]]) -> None:
    """Asserts equal people in equal order with equal scores."""
    for row, plain in zip(rankings, expected, strict=True):
        assert [candidate.person for candidate in row] == [name for name, _ in plain]
        assert [candidate.score for candidate in row] == pytest.approx([score for _, score in plain], abs=1e-6)


def bytes_in(folder: Path) -> Callable[[bytes], list[str]]:
    """bytes_in(folder)(needle) -> the files that hold it."""

    def holding(needle: bytes) -> list[str]:
        return [str(path) for path in sorted(folder.rglob("*")) if path.is_file() and needle in path.read_bytes()]

    return holding
