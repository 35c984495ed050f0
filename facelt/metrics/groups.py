"""Groups of images by columns of attributes, and the sets of images no grouping splits.

N images, U units, G groups.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from facelt.errors import UserError

# What stands for an attribute that is not known: such images are a group of their own and no image is dropped.
UNKNOWN = "(unknown)"


@dataclass(frozen=True, eq=False)
class Grouping:
    """The groups that the columns `by` make: a name a group, with one value a column, and the group of each unit."""

    by: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]
    group_U: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    @property
    def labels(self) -> tuple[str, ...]:
        """The groups' names in one word each, as `female & 30-39`."""
        return tuple(" & ".join(name) for name in self.names)

    def members(self) -> np.ndarray:
        """1 where a unit is in a group, float64 [U,G]: counts by unit times it are counts by group."""
        return (self.group_U[:, None] == np.arange(len(self))).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Units:
    """Images of one identity that agree in every column, as one unit: counts of units add up to those of any group.

    `unit_N` is the unit of each image, `identity_U` the identity of each unit (positions in `identities`), `values`
    the columns' values by unit. `fixed_U` marks units that stand for a collection, such as all distractors, and not for
    a person: no interval imagines other draws of those.
    """

    unit_N: np.ndarray
    identity_U: np.ndarray
    identities: tuple[str, ...]
    values: Mapping[str, tuple[str, ...]]
    fixed_U: np.ndarray

    @classmethod
    def of(
        cls,
        identity_N: Sequence[str],
        columns: Mapping[str, Sequence[str]],
        fixed_N: np.ndarray | None = None,
    ) -> "Units":
        """The units of N images; an empty attribute is `UNKNOWN`. ValueError on lengths that differ."""
        table = {"identity": np.asarray(identity_N, dtype=str)}
        for name, value_N in columns.items():
            value_N = np.asarray(value_N, dtype=str)
            if len(value_N) != len(table["identity"]):
                raise ValueError(f"column {name!r} has {len(value_N)} values for {len(table['identity'])} images")
            table[f"column {name}"] = np.where(value_N == "", UNKNOWN, value_N)
        levels, codes = zip(*(np.unique(value_N, return_inverse=True) for value_N in table.values()), strict=True)
        code_UA, unit_N = np.unique(np.stack(codes, axis=1), axis=0, return_inverse=True)
        values = {
            name: tuple(level[code_UA[:, a]].tolist())
            for a, (name, level) in enumerate(zip(columns, levels[1:], strict=True), start=1)
        }
        fixed_U = np.zeros(len(code_UA), dtype=bool)
        if fixed_N is not None:
            fixed_U[unit_N[np.asarray(fixed_N, dtype=bool)]] = True
        return cls(unit_N.reshape(-1), code_UA[:, 0], tuple(levels[0].tolist()), values, fixed_U)

    def __len__(self) -> int:
        return len(self.identity_U)

    def grouping(self, by: Sequence[str]) -> Grouping:
        """The groups of one column, or of the intersections of several, in the order of their names.

        Raises UserError on a column that is not there, naming those that are.
        """
        missing = [name for name in by if name not in self.values]
        if missing or not by:
            known = ", ".join(self.values) or "none"
            raise UserError(f"no column {', '.join(map(repr, missing)) or 'named'} to group by: columns are {known}")
        names = list(zip(*(self.values[name] for name in by), strict=True))
        order = sorted(set(names))
        place = {name: g for g, name in enumerate(order)}
        return Grouping(tuple(by), tuple(order), np.array([place[name] for name in names], dtype=np.int64))

    def identity_groups(self, grouping: Grouping) -> np.ndarray | None:
        """The group of each identity, int64 [I]; None where an identity is in several, so that none is its own."""
        group_I = np.full(len(self.identities), -1, dtype=np.int64)
        group_I[self.identity_U] = grouping.group_U
        return group_I if (group_I[self.identity_U] == grouping.group_U).all() else None

    def per_identity(self, count_FU: np.ndarray) -> np.ndarray:
        """Counts by unit, [F,U], as counts by identity, [F,I]; fixed units, which are nobody's, are left out."""
        count_FU = np.atleast_2d(count_FU).astype(np.float64)
        count_IF = np.zeros((len(self.identities), len(count_FU)))
        np.add.at(count_IF, self.identity_U[~self.fixed_U], count_FU[:, ~self.fixed_U].T)
        return count_IF.T

    def per_group(self, count_U: np.ndarray, grouping: Grouping) -> np.ndarray:
        """Counts by unit as counts by group and identity, [G,I]: what `TouchedCounts.of_searches` takes."""
        count_GU = np.where(grouping.group_U == np.arange(len(grouping))[:, None], count_U, 0)
        return self.per_identity(count_GU)
