"""One grouping of the audited images: the tables of every rate, the trade-off of each group, what sets groups apart.

P enrolled images, U units, G groups, I identities, R replicates.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from facelt.auditing.searches import Outcomes
from facelt.auditing.subject import Subject
from facelt.config.audit import StatisticsConfig
from facelt.identification import PairHistograms
from facelt.metrics.contrasts import Contrast, Test, contrasts, row_of_identities
from facelt.metrics.group_tables import GroupSize, GroupTable, group_sizes, pair_table, search_table
from facelt.metrics.groups import Grouping, Units
from facelt.metrics.pair_counts import UnitPairs, own_cells
from facelt.metrics.permutation import gap_chance, pair_gap_chance
from facelt.metrics.resampling import identity_weights, replicate_pair_rates, replicate_rates


@dataclass(frozen=True, eq=False)
class Measured:
    """What was counted by one grouping: `tables` by metric, `across` the FMR of every two groups.

    `replicates` holds for each metric the rates of its table's rows in each bootstrap replicate, float64 [R,G].
    """

    grouping: Grouping
    sizes: tuple[GroupSize, ...]
    tables: dict[str, GroupTable]
    replicates: dict[str, np.ndarray]
    across: GroupTable
    histograms: PairHistograms
    contrasts: tuple[Contrast, ...]


def measure(
    subject: Subject,
    columns: Mapping[str, list[str]],
    by: tuple[str, ...],
    threshold: float,
    outcomes: Mapping[str, Outcomes],
    statistics: StatisticsConfig,
    least_identities: int,
) -> Measured:
    """Count everything by the columns `by`, at one threshold for all. `outcomes` are of searches, by metric."""
    own = {name: columns[name] for name in by}
    everyone = Units.of(subject.identities, own)
    sizes = group_sizes(everyone, everyone.grouping(by), ~subject.enrolled_N, least_identities=least_identities)
    units = Units.of(subject.enrolled(subject.identities), {name: subject.enrolled(own[name]) for name in by})
    grouping = units.grouping(by)
    histograms = subject.comparison.histograms(units, grouping)
    mated, non_mated = subject.comparison.errors(units, threshold)
    settings = {"level": statistics.level, "least_identities": least_identities}
    tables, tests = {}, {}
    draws = {"permutations": statistics.replicates, "seed": statistics.seed}
    for metric, outcome in outcomes.items():
        event_U, trial_U = (_by_unit(count_P, units) for count_P in (outcome.event_P, outcome.trial_P))
        tables[metric] = search_table(metric, event_U, trial_U, units, grouping, **settings)
        event_I, trial_I = units.per_identity(event_U)[0], units.per_identity(trial_U)[0]
        tests[metric] = _search_test(event_I, trial_I, draws)
    tables["fmr"] = pair_table("fmr", non_mated, units, grouping, **settings)
    tests["fmr"] = _pair_test(*non_mated.by_identity(units), draws)
    tables["fnmr"] = pair_table("fnmr", mated, units, grouping, **settings)
    counts = tables["fnmr"].touched
    tests["fnmr"] = _search_test(counts.error_FI.sum(axis=0), counts.trial_FI.sum(axis=0), draws)
    across = pair_table("fmr", non_mated, units, grouping, across=True, **settings)
    found: list[Contrast] = []
    for metric, table in tables.items():
        found += contrasts(table, row_of_identities(table), tests[metric])
    pairs = {"fmr": non_mated, "fnmr": mated}
    replicates = _replicates(tables, pairs, units, grouping, statistics)
    return Measured(grouping, sizes, tables, replicates, across, histograms, tuple(found))


def _by_unit(count_P: np.ndarray, units: Units) -> np.ndarray:
    return np.bincount(units.unit_N, weights=count_P, minlength=len(units))


def _replicates(
    tables: Mapping[str, GroupTable],
    pairs: Mapping[str, UnitPairs],
    units: Units,
    grouping: Grouping,
    statistics: StatisticsConfig,
) -> dict[str, np.ndarray]:
    """All metrics' rates with the same identities drawn; within groups, where each identity has one."""
    group_I = units.identity_groups(grouping)
    stratum_I = np.zeros(len(units.identities), dtype=np.int64) if group_I is None else group_I
    weight_RI = identity_weights(stratum_I, replicates=statistics.replicates, seed=statistics.seed)
    found = {}
    for metric, table in tables.items():
        if metric in pairs:
            found[metric] = replicate_pair_rates(pairs[metric], units, grouping, weight_RI)[:, own_cells(grouping)]
        else:
            found[metric] = replicate_rates(table.touched.error_FI, table.touched.trial_FI, weight_RI)
    return found


def _search_test(error_I: np.ndarray, trial_I: np.ndarray, draws: dict) -> Test:
    return partial(gap_chance, error_I, trial_I, **draws)


def _pair_test(error_II: np.ndarray, trial_II: np.ndarray, draws: dict) -> Test:
    return partial(pair_gap_chance, error_II, trial_II, **draws)
