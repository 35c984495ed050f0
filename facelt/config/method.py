"""What the settings of every method have in common."""

from typing import TYPE_CHECKING

from facelt.config.strict import Strict

if TYPE_CHECKING:
    from facelt.config.training import StageConfig


class AnyMethod(Strict):
    """Settings of a method, which a stage chooses by their `name`."""

    @property
    def teachers_wanted(self) -> range:
        """How many trained stages the method learns from: none, but for those that say so."""
        return range(1)

    def why_no_teacher(self, stage: "StageConfig") -> str | None:
        """What is wrong with a teacher from this stage of the same run; None where it will do."""
        return None
