"""MegaFace test suite: distractor lists, noise lists, probe groups, and the suite after noise removal.

Noise modes: `drop` excludes noisy probes and distractors; `raw` keeps everything; `insightface`, used by most published
results, drops noisy distractors and replaces a noisy probe by the mean of its identity's clean probes. Those probes are
also its mates, which inflates the rates: use this mode only for comparison.

P probes, I identities, D feature.
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
from facelt.store.attributes import MAX_GROUP_VALUES, actor_gender, canonical_name, join_spellings, same_value
from facelt.store.feature_tree import probe_identity, read_features_list, read_noise_names
from facelt.utils.tables import read_table
from recordio_tools.atomic_io import sha256_of
from recordio_tools.face_set import IDENTITIES_FILE, read_identities

# megaface_features_list.json_1000_2: 1000 distractors, set 2.
_LIST_NAME = re.compile(r".*_(\d+)_(\d+)")
# Half the width of the uniform noise that published evaluations add to the clean mean.
_NOISE_AMPLITUDE = 0.001


@dataclass(frozen=True)
class DistractorGallery:
    """Distractors ordered so that every list is a prefix: `prefixes` holds (nominal size, set, number of rows)."""

    paths: list[str]
    prefixes: list[tuple[int, int, int]]


@dataclass(frozen=True, eq=False)
class ProbeGroup:
    """Name of a group, the grouping it belongs to, and its probes (bool [P])."""

    name: str
    group: str
    mask_P: np.ndarray


def all_probes_position(groups: Sequence[ProbeGroup]) -> int:
    """Returns the position of the group of all probes."""
    return next(g for g, group in enumerate(groups) if group.group == "all")


@dataclass(frozen=True)
class NoiseLists:
    """Images on the noise lists, in any noise mode: file stems of probes and paths of distractors."""

    probe_stems: frozenset[str]
    distractors: frozenset[str]

    def listed(self, pairs: Mapping[str, str]) -> set[str]:
        """Returns the probes of the pairs (probe: distractor) of which either image is on its list."""
        return {
            probe
            for probe, distractor in pairs.items()
            if PurePosixPath(probe).stem in self.probe_stems or distractor in self.distractors
        }


@dataclass(frozen=True, eq=False)
class Suite:
    """Probes with their identity (an index of `names`), galleries, groups; `noisy_P` marks probes to be replaced."""

    probe_paths: list[str]
    identity_P: np.ndarray
    names: list[str]
    noisy_P: np.ndarray
    pairs: MatePairs
    galleries: list[DistractorGallery]
    distractor_paths: list[str]
    noise_lists: NoiseLists
    groups: list[ProbeGroup]
    summary: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def pairs_P(self) -> np.ndarray:
        """Number of pairs of each probe as the query."""
        return np.bincount(self.pairs.probe_M, minlength=len(self.probe_paths))


def load_suite(config: MegafaceConfig, excluded: Mapping[str, frozenset[str]] | None = None) -> Suite:
    """Reads and checks all files of the suite; `excluded` holds the `probes` and `distractors` to leave out.

    Raises UserError naming the file at fault.
    """
    excluded = excluded or {"probes": frozenset(), "distractors": frozenset()}
    suite, files = config.suite, _FileHashes(config.suite.root)
    probe_list = files.use(suite.facescrub_list)
    listed = [path for path in read_features_list(probe_list) if path not in excluded["probes"]]
    noise_lists = _read_noise_lists(suite, files)
    noisy_P = noisy_probes(listed, noise_lists.probe_stems)
    if config.noise.mode == "drop":
        probes = [path for path, noisy in zip(listed, noisy_P, strict=True) if not noisy]
    else:
        probes = listed
    if not probes:
        raise UserError(f"{probe_list}: no probes are left to evaluate")
    names, identity_P = np.unique([probe_identity(path, probe_list) for path in probes], return_inverse=True)
    names = names.tolist()
    replaced_P = noisy_P if config.noise.mode == "insightface" else np.zeros(len(probes), dtype=bool)
    _check_replaceable(replaced_P, identity_P, names, probe_list)
    noisy = frozenset() if config.noise.mode == "raw" else noise_lists.distractors
    galleries, removed = _galleries(suite, files, noisy, excluded["distractors"])
    groups, notes = attribute_groups(_attributes(suite, files), identity_P, names)
    if config.noise.mode != "raw" and not (suite.facescrub_noises and suite.megaface_noises):
        notes.append(
            f"Noise mode {config.noise.mode} without both noise lists: the images of a missing list are not removed."
        )
    distractors = _union([gallery.paths for gallery in galleries])
    prefixes = [prefix for gallery in galleries for prefix in gallery.prefixes]
    pairs = mate_pairs(identity_P)
    summary = {
        "probes": len(probes),
        "identities": len(names),
        "pairs": len(pairs),
        "distractors": len(distractors),
        "sizes": sorted({size for size, _, _ in prefixes}),
        "sets": sorted({number for _, number, _ in prefixes}),
        "noise": {
            "mode": config.noise.mode,
            "probes_removed": len(listed) - len(probes),
            "distractors_removed": removed,
            "probes_replaced": int(replaced_P.sum()),
        },
        "files": files.hashes,
    }
    return Suite(
        probes, identity_P, names, replaced_P, pairs, galleries, distractors, noise_lists, groups, summary, notes
    )


class _FileHashes:
    """SHA-256 of every file used, by its name in the configuration."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.hashes: dict[str, str] = {}

    def use(self, path: Path) -> Path:
        return self.add(str(path), self.root / path)

    def add(self, name: str, path: Path) -> Path:
        self.hashes[name] = sha256_of(path)
        return path


def _check_replaceable(noisy_P: np.ndarray, identity_P: np.ndarray, names: list[str], probe_list: Path) -> None:
    clean_I = np.bincount(identity_P[~noisy_P], minlength=len(names))
    needed = np.unique(identity_P[noisy_P])
    if len(without_clean := needed[clean_I[needed] == 0]):
        raise UserError(
            f"{probe_list}: all probes of {names[without_clean[0]]!r} are on the noise list, so mode insightface has "
            "no mean to replace them by; use noise.mode=drop"
        )


def _read_noise_lists(suite: SuiteConfig, files: _FileHashes) -> NoiseLists:
    probe_list, distractor_list = suite.facescrub_noises, suite.megaface_noises
    return NoiseLists(
        read_noise_list(files.use(probe_list), stems=True) if probe_list else frozenset(),
        read_noise_list(files.use(distractor_list), stems=False) if distractor_list else frozenset(),
    )


def _galleries(
    suite: SuiteConfig, files: _FileHashes, noisy: frozenset[str], excluded: frozenset[str]
) -> tuple[list[DistractorGallery], int]:
    """Returns the galleries, and the number of distinct distractors that are left out of them as `noisy`."""
    list_paths = find_distractor_lists(suite.megaface_lists, suite.root, suite.sizes, suite.sets)
    lists, removed = {}, set()
    for (size, number), path in list_paths.items():
        listed = read_features_list(files.add(path.name, path))
        if len(listed) != size:
            raise UserError(f"{path}: lists {len(listed)} distractors, but its name gives {size}")
        removed |= noisy.intersection(listed)
        lists[size, number] = [entry for entry in listed if entry not in noisy and entry not in excluded]
    return build_galleries(lists), len(removed)


def _attributes(suite: SuiteConfig, files: _FileHashes) -> "Attributes":
    attributes: Attributes = {}
    if suite.actors and suite.actresses:
        attributes["gender"] = actor_gender(files.use(suite.actors), files.use(suite.actresses))
    if suite.attributes:
        path = files.use(suite.attributes.path)
        table = read_attributes(path, suite.attributes.identity, suite.attributes.columns)
        if duplicates := attributes.keys() & table.keys():
            raise UserError(
                f"{path}: column {min(duplicates)!r} is also given by the files of actors; list the columns to use"
            )
        attributes |= table
    return attributes


def _union(lists: list[list[str]]) -> list[str]:
    return lists[0] if len(lists) == 1 else list(dict.fromkeys(path for paths in lists for path in paths))


def find_distractor_lists(
    pattern: str, root: Path, sizes: Sequence[int] | None, sets: Sequence[int] | None
) -> dict[tuple[int, int], Path]:
    """Returns the distractor lists by (size, set), sizes ascending.

    `pattern` is a folder of lists named `..._SIZE_SET`, or a path with `{size}` and `{set}` in it; relative to `root`.
    Without `sizes` or `sets` all that exist are taken. Raises UserError if a requested list is missing.
    """
    name_pattern = Path(pattern).name
    if "{size}" in name_pattern and "{set}" in name_pattern:
        if name_pattern.index("{size}") > name_pattern.index("{set}"):
            raise UserError(f"megaface_lists: {pattern!r} must name {{size}} before {{set}}")
        folder = root / Path(pattern).parent
        escaped = re.escape(name_pattern)
        name = re.compile(escaped.replace(r"\{size\}", r"(\d+)").replace(r"\{set\}", r"(\d+)"))
    else:
        folder, name = root / pattern, _LIST_NAME
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; megaface_lists names a folder or FOLDER/NAME_{{size}}_{{set}}")
    lists: dict[tuple[int, int], Path] = {}
    for file in sorted(folder.iterdir()):
        if (match := name.fullmatch(file.name)) and file.is_file():
            size, number = int(match[1]), int(match[2])
            if (size, number) in lists:
                raise UserError(
                    f"{file}: and {lists[size, number].name} are both the list of {size} distractors, set {number}"
                )
            lists[size, number] = file
    return _select_lists(lists, pattern, sizes, sets)


def _select_lists(
    lists: dict[tuple[int, int], Path], pattern: str, sizes: Sequence[int] | None, sets: Sequence[int] | None
) -> dict[tuple[int, int], Path]:
    if not lists:
        raise UserError(f"{pattern}: holds no distractor list named ..._SIZE_SET")
    selected_sizes = sorted(set(sizes)) if sizes else sorted({size for size, _ in lists})
    selected_sets = sorted(set(sets)) if sets else sorted({number for _, number in lists})
    keys = [(size, number) for size in selected_sizes for number in selected_sets]
    # Some sizes of a set may be missing unless sizes or sets are configured.
    missing = [key for key in keys if key not in lists]
    if missing and (sizes or sets):
        existing = ", ".join(f"{size}_{number}" for size, number in sorted(lists))
        size, number = missing[0]
        raise UserError(f"{pattern}: has no list of {size} distractors, set {number}; it has {existing}")
    return {key: lists[key] for key in keys if key in lists}


def build_galleries(lists: dict[tuple[int, int], list[str]]) -> list[DistractorGallery]:
    """Returns as few galleries as contain all lists: within a set, a list that contains the smaller one extends it."""
    galleries: list[DistractorGallery] = []
    for number in sorted({number for _, number in lists}):
        gallery: DistractorGallery | None = None
        contained: set[str] = set()
        for size in sorted(size for size, set_number in lists if set_number == number):
            paths = lists[size, number]
            distinct = set(paths)
            if gallery is None or not contained <= distinct:
                gallery, contained = DistractorGallery([], []), set()
                galleries.append(gallery)
            gallery.paths.extend(path for path in paths if path not in contained)
            contained = distinct
            gallery.prefixes.append((size, number, len(gallery.paths)))
    return galleries


def read_noise_list(path: Path, *, stems: bool) -> frozenset[str]:
    """Returns the images of a noise list: file stems for FaceScrub (`stems`), else paths below the distractors' folder.

    FaceScrub's list names .png files regardless of the images' format, so they are matched by stem. Raises UserError
    naming the file.
    """
    return frozenset(PurePosixPath(name).stem if stems else name for name in read_noise_names(path))


def noisy_probes(paths: Iterable[str], stems: frozenset[str]) -> np.ndarray:
    """Returns which probes are on the noise list, bool [P]."""
    return np.array([PurePosixPath(path).stem in stems for path in paths], dtype=bool)


def replace_noisy(
    probe_PD: np.ndarray, identity_P: np.ndarray, noisy_P: np.ndarray, *, unit: bool, seed: int
) -> np.ndarray:
    """Returns the probes with each noisy row replaced by the normalised mean of its identity's clean rows plus noise.

    The noise is drawn uniformly from [-0.001, 0.001) for every value, in the order of the probes. Rows of a unit kind
    are normalised again; rows of another kind get the mean length of the identity's clean rows, so that they are not
    longer than real ones. Every identity with a noisy row must have a clean one.
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
    shape = (int(noisy_P.sum()), probe_PD.shape[1])
    noise_ND = np.random.default_rng(seed).uniform(-_NOISE_AMPLITUDE, _NOISE_AMPLITUDE, shape)
    replacement_ND = _normalised(_normalised(sum_ID[identity_P[noisy_P]]) + noise_ND)
    probe_PD[noisy_P] = replacement_ND * length_I[identity_P[noisy_P], None]
    return probe_PD


def _normalised(rows_ND: np.ndarray) -> np.ndarray:
    return rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True)


# column -> identity (canonical name) -> value
Attributes = dict[str, dict[str, str]]


def read_attributes(path: Path, identity: str, columns: Sequence[str] | None) -> Attributes:
    """Returns the values of `columns` (None: all but `identity`) by the identity in column `identity` of a CSV file.

    Raises UserError naming the file, the missing column, or the identity with two different values.
    """
    rows = read_table(path, (identity, *(columns or ())))
    names = [name for name in rows.columns if name != identity] if columns is None else list(columns)
    people = [canonical_name(name) for name in rows.columns[identity]]
    table: Attributes = {name: {} for name in names}
    for name in names:
        for row, value in enumerate(rows.columns[name]):
            if value.strip() and same_value(table[name].setdefault(people[row], value)) != same_value(value):
                person = rows.columns[identity][row]
                raise UserError(f"{path}: line {rows.line_N[row]} gives {person!r} a second {name}: {value!r}")
    return table


def read_names(path: Path) -> set[str]:
    """Returns the canonical names in an identities.csv, or in the column `name` of another CSV file.

    Raises UserError naming the file.
    """
    if path.name == IDENTITIES_FILE:
        names = [row["name"] for row in read_identities(path).values()]
    else:
        names = read_table(path, ("name",)).columns["name"]
    return {canonical_name(name) for name in names if name.strip()}


def attribute_groups(
    attributes: Attributes, identity_P: np.ndarray, names: Sequence[str]
) -> tuple[list[ProbeGroup], list[str]]:
    """Returns a group for each value of each column among the probe identities, and notes on its values.

    `identity_P` indexes `names`. Raises UserError if a column has too many values for a grouping.
    """
    groups, notes = [], []
    for column, value_of in attributes.items():
        values_of = {column: [value_of.get(canonical_name(name), "") for name in names]}
        notes += join_spellings(values_of, [column])
        value_I = values_of[column]
        # Gender keeps the order of its files, male before female; other columns are sorted.
        values = [value for value in ("male", "female") if column == "gender" and value in value_I]
        values += sorted(set(value_I) - set(values) - {""})
        if len(values) > MAX_GROUP_VALUES:
            raise UserError(
                f"attribute column {column!r} has {len(values)} values, more than {MAX_GROUP_VALUES}: "
                "list the columns to group by"
            )
        for value in values:
            member_I = np.array([identity_value == value for identity_value in value_I], dtype=bool)
            groups.append(ProbeGroup(value, column, member_I[identity_P]))
        if missing := value_I.count(""):
            notes.append(f"{missing} of {len(names)} probe identities have no {column} and are in none of its groups.")
    return groups, notes
