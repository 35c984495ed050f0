"""Figures that others published, from a file beside the table they stand in."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from facelt.config import Strict, load_config

Percent = Annotated[float, Field(ge=0, le=100)]

SOURCES = {
    "C": "read in the authors' code",
    "P": "paper, poster or slides",
    "R": "the authors' README or an answer of theirs on GitHub",
    "S": "a table of others",
    "M": "unconfirmed: no target",
}


class PublishedMethod(Strict):
    """Top-1 accuracies in % of one method on one suite, by imbalance, from one kind of source.

    `recipe` is ours that they stand beside, if there is one; `selection` says how their epoch was chosen, if we know.
    """

    suite: str
    method: str
    recipe: str | None = None
    source: Literal["C", "P", "R", "S", "M"]
    selection: str | None = None
    accuracy: dict[float, Percent]


class Published(Strict):
    """The whole file."""

    figures: tuple[PublishedMethod, ...]


def read_published(path: Path) -> tuple[PublishedMethod, ...]:
    """The figures of a file. Raises UserError naming the key at fault."""
    return load_config(path, Published).figures
