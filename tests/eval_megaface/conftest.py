"""A small synthetic suite in MegaFace's layout, with stores."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from eval_megaface.config import MegafaceConfig
from eval_megaface.evaluate import evaluate_megaface
from facelt.config.loading import load_config
from facelt.store.writer import StoreWriter


@pytest.fixture(scope="session")
def write_store():
    """A function that writes a store."""
    return _write_store


@pytest.fixture(scope="session")
def write_list():
    """A function that writes a features list."""
    return _write_list


def _write_store(path, keys, kinds, identities=None, meta=None):
    """A store of float32 arrays by kind."""
    dimensions = {kind: value_ND.shape[1] for kind, value_ND in kinds.items()}
    writer = StoreWriter(path, keys, identities or ["x"] * len(keys), dimensions, meta or {}, dtype="float32")
    writer.write(0, kinds)
    return writer.finish()


def _write_list(path, paths):
    """A features list as MegaFace writes it."""
    path.write_text(json.dumps({"path": list(paths), "id": [str(number) for number in range(len(paths))]}))


def _unit(rows_ND):
    return (rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True)).astype(np.float32)


@dataclass
class SmallSuite:
    """The suite's folder and its values: 4 identities of 3, 3, 2 and 1 probes, 30 distractors, 8 training rows."""

    root: Path
    probes: list[str]
    distractors: list[str]
    probe_PD: np.ndarray
    distractor_GD: np.ndarray
    train_ND: np.ndarray

    @staticmethod
    def unit(rows_ND):
        """Rows of length one."""
        return _unit(rows_ND)

    def config(self, **changes):
        """The configuration as a dict."""
        model = {"probes": "probes", "distractors": "distractors", "train": "train"}
        files = {key: str(self.root / name) for key, name in model.items()}
        return {
            "out": str(self.root / "out"),
            "suite": {
                "root": str(self.root),
                "facescrub_list": "facescrub.json",
                "megaface_lists": "lists",
                "facescrub_noises": "facescrub_noises.txt",
                "megaface_noises": "megaface_noises.txt",
                "actors": "actors.txt",
                "actresses": "actresses.txt",
            },
            "models": {"plain": files},
            "shots": {"threshold": 0.3},
        } | changes

    def run(self, *overrides, folder=None, **changes):
        """The report of the configuration with these changes."""
        config = load_config(self.write_config(**changes), MegafaceConfig, overrides)
        return evaluate_megaface(config, folder=folder).json_values()

    def write_config(self, **changes):
        """The configuration as a YAML file."""
        path = self.root / "config.yaml"
        path.write_text(yaml.safe_dump(self.config(**changes)))
        return path


@pytest.fixture
def small(tmp_path):
    random = np.random.default_rng(5)
    people = {"Ann_Lee": 3, "Bob_Ray": 3, "Cy_Doe_Jr.": 2, "Di_Fox": 1}
    probes = [f"{name}/{name}_{number}.jpg" for name, count in people.items() for number in range(count)]
    centre = {name: random.standard_normal(6) for name in people}
    probe_PD = _unit(np.stack([centre[path.split("/")[0]] + 0.6 * random.standard_normal(6) for path in probes]))
    distractors = [f"{number % 3:03}/album_{number}/{number}.jpg" for number in range(30)]
    distractor_GD = _unit(random.standard_normal((30, 6)))
    train_ND = _unit(random.standard_normal((8, 6)))
    _write_list(tmp_path / "facescrub.json", probes)
    (tmp_path / "lists").mkdir()
    _write_list(tmp_path / "lists/megaface_features_list.json_5_1", distractors[:5])
    _write_list(tmp_path / "lists/megaface_features_list.json_30_1", distractors)
    (tmp_path / "facescrub_noises.txt").write_text("# noise\nBob_Ray_2.png\n")
    (tmp_path / "megaface_noises.txt").write_text(f"# noise\n7\t{distractors[2]}\n{distractors[9]}\n")
    header = "name\timage_id\tface_id\turl\tbbox\tsha256\n"
    (tmp_path / "actors.txt").write_text(header + "Bob Ray\t0\t0\t-\t-\t-\nCy Doe Jr\t1\t1\t-\t-\t-\n")
    (tmp_path / "actresses.txt").write_text(header + "Ann Lee\t0\t0\t-\t-\t-\n")
    # Stores in another order than the lists.
    turn = np.roll(np.arange(len(probes)), 4)
    _write_store(tmp_path / "probes", [probes[row] for row in turn], {"direct": probe_PD[turn]})
    _write_store(tmp_path / "distractors", distractors[::-1], {"direct": distractor_GD[::-1]})
    _write_store(tmp_path / "train", [str(row) for row in range(8)], {"direct": train_ND}, meta={"model": "abc"})
    return SmallSuite(tmp_path, probes, distractors, probe_PD, distractor_GD, train_ND)


@pytest.fixture
def second(small, write_store):
    """A second model with three kinds; `meta` is shorter than one, so that inner products differ from cosines."""
    random = np.random.default_rng(9)
    arrays = {}
    for name, keys in (("probes", small.probes), ("distractors", small.distractors)):
        direct_ND = small.unit(random.standard_normal((len(keys), 6)))
        meta_ND = small.unit(random.standard_normal((len(keys), 6)))
        short_ND = meta_ND * random.uniform(0.1, 0.9, (len(keys), 1)).astype(np.float32)
        arrays[name] = {"direct": direct_ND, "meta": short_ND, "meta_unit": meta_ND}
        write_store(small.root / f"second_{name}", keys, arrays[name])
    files = {name: str(small.root / f"second_{name}") for name in ("probes", "distractors")}
    return small.config()["models"] | {"second": files}, arrays


@pytest.fixture(scope="session")
def real_stores(real_data, write_store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    arrays = np.load(real_data / "faces/embeddings.npz")
    for name in ("facescrub", "megaface"):
        write_store(folder / name, arrays[f"{name}_paths"].tolist(), {"direct": arrays[name].astype(np.float32)})
    train_ND = arrays["train"].astype(np.float32)
    write_store(folder / "train", [str(row) for row in range(len(train_ND))], {"direct": train_ND})
    return folder


@pytest.fixture
def real_config(real_data, real_stores, tmp_path):
    """The configuration for the public embeddings of real faces, as a dict."""
    return {
        "out": tmp_path,
        "suite": {
            "root": real_data / "faces/megaface",
            "facescrub_list": "facescrub_features_list.json",
            "megaface_lists": "megaface_features_list.json_{size}_{set}",
            "facescrub_noises": "facescrub_noises.txt",
            "megaface_noises": "megaface_noises.txt",
            "actors": "facescrub_actors.txt",
            "actresses": "facescrub_actresses.txt",
        },
        "models": {
            "mobile": {
                "probes": real_stores / "facescrub",
                "distractors": real_stores / "megaface",
                "train": real_stores / "train",
                "training_identities": real_data / "faces/train/identities.csv",
            }
        },
    }
