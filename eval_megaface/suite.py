"""The test suite as it is measured: which probes and distractors remain, and who the probes are. P probes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eval_megaface.config import MegafaceConfig, SuiteConfig
from eval_megaface.groups import Attributes, Group, attribute_groups, read_attributes, read_gender
from eval_megaface.lists import Gallery, find_distractor_lists, nest
from eval_megaface.noise import noisy_probes, read_noise_list
from facelt.errors import UserError
from facelt.identification import MatePairs, mate_pairs
from facelt.store.image_lists import probe_identity, read_features_list
from facelt.whole_files import sha256_of_input


@dataclass(frozen=True, eq=False)
class Suite:
    """Probes with their identity (an index of `names`), galleries, groups; `noisy_P` are the probes to be replaced."""

    probe_paths: list[str]
    identity_P: np.ndarray
    names: list[str]
    noisy_P: np.ndarray
    pairs: MatePairs
    galleries: list[Gallery]
    distractor_paths: list[str]
    groups: list[Group]
    summary: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def pairs_P(self) -> np.ndarray:
        """How many pairs each probe takes part in as the probe."""
        return np.bincount(self.pairs.probe_M, minlength=len(self.probe_paths))


def load_suite(config: MegafaceConfig, without: Mapping[str, frozenset[str]] | None = None) -> Suite:
    """Read and check all of the suite's files; `without` are `probes` and `distractors` to leave out.

    Raises UserError naming the file at fault.
    """
    without = without or {"probes": frozenset(), "distractors": frozenset()}
    suite, files = config.suite, _Files(config.suite.root)
    probe_list = files.use(suite.facescrub_list)
    listed = [path for path in read_features_list(probe_list) if path not in without["probes"]]
    stems = read_noise_list(files.use(suite.facescrub_noises), stems=True) if suite.facescrub_noises else frozenset()
    noisy_P = noisy_probes(listed, stems)
    if config.noise.mode == "drop":
        probes = [path for path, noisy in zip(listed, noisy_P, strict=True) if not noisy]
    else:
        probes = listed
    if not probes:
        raise UserError(f"{probe_list}: no probe is left to measure")
    names, identity_P = np.unique([probe_identity(path, probe_list) for path in probes], return_inverse=True)
    names = names.tolist()
    replaced_P = noisy_P if config.noise.mode == "insightface" else np.zeros(len(probes), dtype=bool)
    _check_replaceable(replaced_P, identity_P, names, probe_list)
    galleries, removed = _galleries(config, files, without["distractors"])
    groups, notes = attribute_groups(_attributes(suite, files), identity_P, names)
    if config.noise.mode != "raw" and not (suite.facescrub_noises and suite.megaface_noises):
        notes.append(f"Noise mode {config.noise.mode} without both noise lists: the missing one removes nothing.")
    distractors = _distinct([gallery.paths for gallery in galleries])
    cuts = [cut for gallery in galleries for cut in gallery.cuts]
    pairs = mate_pairs(identity_P)
    summary = {
        "probes": len(probes),
        "identities": len(names),
        "pairs": len(pairs),
        "distractors": len(distractors),
        "sizes": sorted({size for size, _, _ in cuts}),
        "sets": sorted({number for _, number, _ in cuts}),
        "noise": {
            "mode": config.noise.mode,
            "probes_removed": len(listed) - len(probes),
            "distractors_removed": removed,
            "probes_replaced": int(replaced_P.sum()),
        },
        "files": files.hashes,
    }
    return Suite(probes, identity_P, names, replaced_P, pairs, galleries, distractors, groups, summary, notes)


def _distinct(lists: list[list[str]]) -> list[str]:
    """All that any of the lists holds, once; a single list as it is."""
    return lists[0] if len(lists) == 1 else list(dict.fromkeys(path for paths in lists for path in paths))


class _Files:
    """Paths below the suite's root, each fingerprinted as it is used."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.hashes: dict[str, str] = {}

    def use(self, path: Path) -> Path:
        return self.add(str(path), self.root / path)

    def add(self, name: str, path: Path) -> Path:
        self.hashes[name] = sha256_of_input(path)
        return path


def _check_replaceable(noisy_P: np.ndarray, identity_P: np.ndarray, names: list[str], where: Path) -> None:
    clean_I = np.bincount(identity_P[~noisy_P], minlength=len(names))
    needed = np.unique(identity_P[noisy_P])
    if len(without := needed[clean_I[needed] == 0]):
        raise UserError(
            f"{where}: all probes of {names[without[0]]!r} are on the noise list, so mode insightface has no mean "
            "to put in their place; use noise.mode=drop"
        )


def _galleries(config: MegafaceConfig, files: _Files, without: frozenset[str]) -> tuple[list[Gallery], int]:
    """The nested galleries, and how many distinct distractors the noise list took out of them."""
    suite = config.suite
    found = find_distractor_lists(suite.megaface_lists, suite.root, suite.sizes, suite.sets)
    noisy: frozenset[str] = frozenset()
    if suite.megaface_noises:
        noisy = read_noise_list(files.use(suite.megaface_noises), stems=False)
    if config.noise.mode == "raw":
        noisy = frozenset()
    lists, removed = {}, set()
    for (size, number), path in found.items():
        listed = read_features_list(files.add(path.name, path))
        if len(listed) != size:
            raise UserError(f"{path}: lists {len(listed)} distractors, its name says {size}")
        removed |= noisy.intersection(listed)
        lists[size, number] = [entry for entry in listed if entry not in noisy and entry not in without]
    return nest(lists), len(removed)


def _attributes(suite: SuiteConfig, files: _Files) -> Attributes:
    attributes: Attributes = {}
    if suite.actors and suite.actresses:
        attributes |= read_gender(files.use(suite.actors), files.use(suite.actresses))
    if suite.attributes:
        path = files.use(suite.attributes.path)
        table = read_attributes(path, suite.attributes.identity, suite.attributes.columns)
        if twice := attributes.keys() & table.keys():
            raise UserError(
                f"{path}: column {min(twice)!r} is also given by the actors' files; name the columns wanted"
            )
        attributes |= table
    return attributes
