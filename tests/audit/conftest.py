"""A small face set with known groups as a store, with distractors and attributes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from facelt.store.writer import StoreWriter


@dataclass
class Faces:
    """16 people of 4 images, easier to distinguish in group `a`; 40 distractors."""

    folder: Path
    keys: list[str]
    identities: list[str]
    value_ND: np.ndarray
    gallery_GD: np.ndarray

    def store(self, name="probes", value_ND=None, **changes):
        """Writes (once) and returns a store of the faces, or of other rows for the same images."""
        value_ND = self.value_ND if value_ND is None else value_ND
        return write_store(self.folder / name, self.keys, value_ND, identities=self.identities, **changes)

    def gallery(self, name="gallery", value_GD=None, **changes):
        """Writes (once) and returns a store of the distractors, or of other rows."""
        value_GD = self.gallery_GD if value_GD is None else value_GD
        keys = [f"stranger/{number}.jpg" for number in range(len(value_GD))]
        return write_store(self.folder / name, keys, value_GD, ["stranger"] * len(keys), **changes)

    def attributes(self, text=None, name="people.csv"):
        """A CSV file of attributes; by default group and age by identity."""
        if text is None:
            people = sorted(set(self.identities))
            rows = [f"{person},{'a' if index % 2 else 'b'},{20 + 3 * index}" for index, person in enumerate(people)]
            text = "\n".join(["identity,group,age", *rows]) + "\n"
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path


def write_store(path, keys, value_ND, identities, attributes=None, meta=None):
    if not path.exists():
        meta = meta or {"model": {"name": "toy"}, "preprocessing": "none"}
        columns = {"attributes": attributes} if attributes else {}
        writer = StoreWriter(path, keys, identities, {"direct": value_ND.shape[1]}, meta, dtype="float32", **columns)
        writer.write(0, {"direct": value_ND})
        writer.finish()
    return path


def unit(rows_ND):
    return (rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def faces(tmp_path):
    random = np.random.default_rng(3)
    people = [f"Person_{number:02d}" for number in range(16)]
    identities = [person for person in people for _ in range(4)]
    centre_ID = random.normal(size=(16, 12))
    spread_I = np.where(np.arange(16) % 2, 0.5, 0.9)
    value_ND = np.repeat(centre_ID, 4, axis=0) + random.normal(size=(64, 12)) * np.repeat(spread_I, 4)[:, None]
    keys = [f"{person}/{number}.jpg" for number, person in enumerate(identities)]
    return Faces(tmp_path, keys, identities, unit(value_ND), unit(random.normal(size=(40, 12))))


@pytest.fixture
def settings(faces):
    """settings(**changes) -> a valid configuration of an audit of the faces by group."""
    from facelt.config.audit import AuditConfig

    def make(**changes):
        values = {
            "out": str(faces.folder / "report"),
            "embeddings": {"path": str(faces.store())},
            "attributes": {"tables": [str(faces.attributes())]},
            "by": [["group"]],
            "threshold": {"fmr": 0.02, "fpir": 0.1},
            **changes,
        }
        return AuditConfig.model_validate(values)

    return make
