"""MegaFace's list files: which images are probes and distractors, and which galleries lie in each other.

MegaFace's noise lists, and the three ways to treat what they name.

`drop` leaves noisy probes and distractors out. `raw` keeps everything. `insightface` is what most published figures
rest on: noisy distractors are dropped, a noisy probe is replaced by its identity's clean mean. It then meets the very
images it was made of as mates: that flatters, so use it for comparison only.

P probes, D feature.

Who the probes are: gender from FaceScrub's actor and actress files, or any attribute of a table. P probes.

The test suite as it is measured: which probes and distractors remain, and who the probes are. P probes.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from eval_megaface.config import MegafaceConfig, SuiteConfig
from facelt.errors import UserError
from facelt.identification.rank import MatePairs, mate_pairs
from facelt.store.attributes import MAX_GROUP_VALUES, actor_gender, canonical_name
from facelt.store.feature_tree import probe_identity, read_features_list, read_noise_names
from facelt.utils.tables import read_table
from recordio_tools.atomic_io import sha256_of

# megaface_features_list.json_1000_2: 1000 distractors, set 2.
LIST_NAME = re.compile(r"_(\d+)_(\d+)$")


def find_distractor_lists(
    place: str, root: Path, sizes: Sequence[int] | None, sets: Sequence[int] | None
) -> dict[tuple[int, int], Path]:
    """The distractor lists by (size, set), sizes ascending.

    `place` is a folder of lists named `..._SIZE_SET`, or a path with `{size}` and `{set}` in it; relative to `root`.
    Without `sizes` or `sets` all that exist are taken. Raises UserError where one that was asked for is missing.
    """
    pattern = Path(place).name
    if "{size}" in pattern and "{set}" in pattern:
        folder = root / Path(place).parent
        name = re.compile(re.escape(pattern).replace(r"\{size\}", r"(\d+)").replace(r"\{set\}", r"(\d+)"))
        if pattern.index("{size}") > pattern.index("{set}"):
            raise UserError(f"megaface_lists: {place!r} must name {{size}} before {{set}}")
    else:
        folder, name = root / place, re.compile(rf".*{LIST_NAME.pattern}")
    if not folder.is_dir():
        raise UserError(
            f"{folder}: there is no such folder; megaface_lists names a folder or FOLDER/NAME_{{size}}_{{set}}"
        )
    found: dict[tuple[int, int], Path] = {}
    for file in sorted(folder.iterdir()):
        if (match := name.fullmatch(file.name)) and file.is_file():
            size, number = int(match[1]), int(match[2])
            if (size, number) in found:
                raise UserError(
                    f"{file}: and {found[size, number].name} are both the list of {size} distractors, set {number}"
                )
            found[size, number] = file
    return _chosen(found, place, sizes, sets)


def _chosen(
    found: dict[tuple[int, int], Path], place: str, sizes: Sequence[int] | None, sets: Sequence[int] | None
) -> dict[tuple[int, int], Path]:
    if not found:
        raise UserError(f"{place}: holds no distractor list named ..._SIZE_SET")
    wanted_sizes = sorted(set(sizes)) if sizes else sorted({size for size, _ in found})
    wanted_sets = sorted(set(sets)) if sets else sorted({number for _, number in found})
    wanted = [(size, number) for size in wanted_sizes for number in wanted_sets]
    # A set may lack some sizes only where nobody asked for it by name.
    missing = [key for key in wanted if key not in found]
    if missing and (sizes or sets):
        there = ", ".join(f"{size}_{number}" for size, number in sorted(found))
        raise UserError(f"{place}: has no list of {missing[0][0]} distractors, set {missing[0][1]}; there are {there}")
    return {key: found[key] for key in wanted if key in found}


@dataclass(frozen=True)
class Gallery:
    """Distractors in an order in which every list is a beginning: `cuts` has (size by name, set, number of rows)."""

    paths: list[str]
    cuts: list[tuple[int, int, int]]


def nest(lists: dict[tuple[int, int], list[str]]) -> list[Gallery]:
    """As few galleries as contain all lists: within a set, each list that contains the smaller one only adds to it."""
    galleries: list[Gallery] = []
    for number in sorted({number for _, number in lists}):
        last: Gallery | None = None
        inside: set[str] = set()
        for size in sorted(size for size, other in lists if other == number):
            paths = lists[size, number]
            here = set(paths)
            if last is None or not inside <= here:
                last, inside = Gallery([], []), set()
                galleries.append(last)
            last.paths.extend(path for path in paths if path not in inside)
            inside = here
            last.cuts.append((size, number, len(last.paths)))
    return galleries


MODES = ("drop", "raw", "insightface")
# Half the width of the uniform noise that published evaluations add to the clean mean.
JITTER = 0.001


def read_noise_list(path: Path, *, stems: bool) -> frozenset[str]:
    """The images a noise list names: file stems for FaceScrub (`stems`), else paths below the distractors' folder.

    FaceScrub's list names .png files whatever the images are, so they are matched by stem. Raises UserError naming the
    file.
    """
    return frozenset(PurePosixPath(name).stem if stems else name for name in read_noise_names(path))


def noisy_probes(paths: Iterable[str], stems: frozenset[str]) -> np.ndarray:
    """Which probes are named by the list, bool [P]."""
    return np.array([PurePosixPath(path).stem in stems for path in paths], dtype=bool)


def replace_noisy(
    probe_PD: np.ndarray, identity_P: np.ndarray, noisy_P: np.ndarray, *, unit: bool, seed: int
) -> np.ndarray:
    """Probes with each noisy row replaced by the normalised mean of its identity's clean rows, plus uniform noise.

    The noise is drawn from [-0.001, 0.001) for every value, in the order of the probes. Rows of a unit kind are brought
    back to length one; of another kind, to the mean length of the identity's clean rows, lest the stand-in be longer
    than any real one. Every identity with a noisy row must have a clean one.
    """
    probe_PD = probe_PD.astype(np.float32)
    if not noisy_P.any():
        return probe_PD
    clean_PD = np.where(noisy_P[:, None], 0, probe_PD).astype(np.float64)
    identities = int(identity_P.max()) + 1
    sum_ID = np.zeros((identities, probe_PD.shape[1]))
    np.add.at(sum_ID, identity_P, clean_PD)
    length_I = np.ones(identities)
    if not unit:
        clean_I = np.bincount(identity_P[~noisy_P], minlength=identities)
        length_I = np.bincount(identity_P, np.linalg.norm(clean_PD, axis=1), identities) / np.maximum(clean_I, 1)
    noise_ND = np.random.default_rng(seed).uniform(-JITTER, JITTER, (int(noisy_P.sum()), probe_PD.shape[1]))
    stand_in_ND = _normalised(_normalised(sum_ID[identity_P[noisy_P]]) + noise_ND)
    probe_PD[noisy_P] = stand_in_ND * length_I[identity_P[noisy_P], None]
    return probe_PD


def _normalised(rows_ND: np.ndarray) -> np.ndarray:
    return rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True)


# column -> identity (canonical name) -> value
Attributes = dict[str, dict[str, str]]


@dataclass(frozen=True, eq=False)
class Group:
    """A figure's name, the group of figures it belongs to, and its probes (bool [P])."""

    name: str
    group: str
    mask_P: np.ndarray


def read_gender(actors: Path, actresses: Path) -> Attributes:
    """Gender by identity from FaceScrub's two tab-separated files (header, name first), actors before actresses.

    Raises UserError naming the file, or the name that is in both.
    """
    return {"gender": actor_gender(actors, actresses)}


def read_attributes(path: Path, identity: str, columns: Sequence[str] | None) -> Attributes:
    """Values of `columns` (all but `identity`, if None) by the identity in column `identity` of a CSV file.

    Raises UserError naming the file, the column that is missing, or the identity with two different values.
    """
    rows = read_table(path, (identity, *(columns or ())))
    wanted = [name for name in rows.columns if name != identity] if columns is None else list(columns)
    people = [canonical_name(name) for name in rows.columns[identity]]
    table: Attributes = {name: {} for name in wanted}
    for name, place in ((name, place) for name in wanted for place in range(len(people))):
        value = rows.columns[name][place]
        if value and table[name].setdefault(people[place], value) != value:
            who = rows.columns[identity][place]
            raise UserError(f"{path}: line {rows.line_N[place]} gives {who!r} a second {name}: {value!r}")
    return table


def read_names(path: Path, column: str = "name") -> set[str]:
    """The canonical_name names in one column of a CSV file. Raises UserError naming the file."""
    return {canonical_name(name) for name in read_table(path, (column,)).columns[column] if name.strip()}


def attribute_groups(
    attributes: Attributes, identity_P: np.ndarray, names: Sequence[str]
) -> tuple[list[Group], list[str]]:
    """A group for each value of each column that a probe identity has, and a note for each column that misses some.

    `identity_P` indexes `names`. Raises UserError on a column with too many values to be a grouping.
    """
    groups, notes = [], []
    for column, value_of in attributes.items():
        value_I = [value_of.get(canonical_name(name), "") for name in names]
        # Gender keeps the order of its files, male before female; any other column is sorted.
        values = [value for value in ("male", "female") if column == "gender" and value in value_of.values()]
        values += sorted(set(value_I) - set(values) - {""})
        if len(values) > MAX_GROUP_VALUES:
            raise UserError(
                f"attribute column {column!r} has {len(values)} values, more than {MAX_GROUP_VALUES}: "
                "list the columns to group by"
            )
        for value in values:
            member_I = np.array([other == value for other in value_I], dtype=bool)
            groups.append(Group(value, column, member_I[identity_P]))
        if absent := value_I.count(""):
            notes.append(f"{absent} of {len(names)} probe identities have no {column} and are in none of its groups.")
    return groups, notes


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
        self.hashes[name] = sha256_of(path)
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
