"""The recipes of the suites: configs/SUITE/RECIPE.yaml, beside the base.yaml that a suite's recipes share."""

import difflib
from dataclasses import dataclass
from pathlib import Path

from facelt.config import TrainConfig
from facelt.errors import UserError

BASE = "base.yaml"


@dataclass(frozen=True)
class Recipe:
    """A file and the names it goes by."""

    suite: str
    name: str
    path: Path

    @property
    def title(self) -> str:
        """How a user calls it: SUITE/RECIPE."""
        return f"{self.suite}/{self.name}"


def all_recipes(configs: Path) -> list[Recipe]:
    """Every recipe of every suite, by name; a folder without a base.yaml is no suite."""
    suites = sorted(base.parent for base in configs.glob(f"*/{BASE}"))
    return [
        Recipe(suite.name, path.stem, path)
        for suite in suites
        for path in sorted(suite.glob("*.yaml"))
        if path.name != BASE
    ]


def find_recipe(configs: Path, title: str) -> Recipe:
    """The recipe of that name. Raises UserError with the nearest names where there is none."""
    known = {recipe.title: recipe for recipe in all_recipes(configs)}
    if title in known:
        return known[title]
    # A name without its suite, or one that is slightly off.
    near = [name for name in known if name.endswith(f"/{title}")] or difflib.get_close_matches(title, known, n=3)
    meant = f"did you mean {', '.join(near)}?" if near else f"there are: {', '.join(known) or 'none'}"
    raise UserError(f"{title}: no such recipe; {meant}")


def imbalance_of(config: TrainConfig) -> float | None:
    """The largest class over the smallest, of data that are made so; None of others."""
    return getattr(config.data, "imbalance", None)
