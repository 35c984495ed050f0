"""What the settings of every method have in common."""

from facelt.config.strict import Strict


class AnyMethod(Strict):
    """Settings of a method, which a stage chooses by their `name`."""

    @property
    def teachers_wanted(self) -> range:
        """How many trained stages the method learns from: none, but for those that say so."""
        return range(1)
