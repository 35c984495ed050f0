"""Conditions a pipeline stops on, as `gap(rank1) > 0.05`: read without evaluating anything, and held against figures.

The whole language is `figure(metric) op number` or `figure(metric, by=column) op number`; `by=gender+age_band` names an
intersection of columns.
"""

import math
import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass
from types import MappingProxyType

from facelt.errors import UserError

_OPERATORS = MappingProxyType({">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le})

_WORD = r"[A-Za-z_][A-Za-z0-9_.@-]*"
# A column's name comes from the auditor's table, so that anything but the language's own signs may stand in it.
_COLUMN = r"[^(),=+<>]+"
_SHAPE = re.compile(
    rf"\s*(?P<figure>{_WORD})\s*\(\s*(?P<metric>{_WORD})\s*"
    rf"(?:,\s*by\s*=\s*(?P<by>{_COLUMN}(?:\+{_COLUMN})*))?\)\s*(?P<op>[<>]=?)\s*(?P<limit>\S+)\s*"
)
_FORM = "write it as gap(rank1) > 0.05 or gap(rank1, by=gender+age_band) > 0.05"


@dataclass(frozen=True)
class Value:
    """A figure of a report: `value`, or None and `note` why; `at_least` says that it may be larger."""

    figure: str
    metric: str
    by: tuple[str, ...]
    value: float | None
    at_least: bool = False
    note: str = ""


@dataclass(frozen=True)
class FailCondition:
    """A condition that was read: `text` as the user wrote it; `by` is empty for every grouping of the report."""

    text: str
    figure: str
    metric: str
    by: tuple[str, ...]
    op: str
    limit: float

    def reasons(self, values: Iterable[Value]) -> list[str]:
        """One line for each figure that meets the condition, which is why to stop; none where there is no reason.

        Raises:
            UserError: a figure, a metric or a grouping that the report does not have, with those it has; or a figure
                that could not be computed, or is only known to be at least so much, which decides nothing: a pipeline
                must not go on because something was not measured.
        """
        values = list(values)
        chosen = self._chosen(values)
        for one in chosen:
            if (why := self._undecided(one)) is not None:
                raise UserError(f"{self.text!r} cannot be decided: {_name(one)} {why}")
        return [
            f"{self.text}: {_name(one)} is {'at least ' if one.at_least else ''}{one.value:.4g}"
            for one in chosen
            if _OPERATORS[self.op](one.value, self.limit)
        ]

    def _undecided(self, one: Value) -> str | None:
        if one.value is None or math.isnan(one.value):
            return f"has no value, {one.note or 'there was nothing to measure'}"
        # What is at least so much is above a limit where so much is, and is below none for certain.
        above = self.op.startswith(">")
        if one.at_least and _OPERATORS[self.op](one.value, self.limit) != above:
            return f"is at least {one.value:.4g} and may be more, {one.note or 'a group has no error'}"
        return None

    def _chosen(self, values: list[Value]) -> list[Value]:
        chosen = values
        wanted = (("figure", self.figure), ("metric", self.metric), ("by", self.by))
        for field, want in wanted:
            if field == "by" and not want:
                continue
            kept = [one for one in chosen if getattr(one, field) == want]
            if not kept:
                known = sorted({_word(getattr(one, field)) for one in chosen})
                called = "grouping" if field == "by" else field
                raise UserError(
                    f"{self.text!r}: this report has no {called} {_word(want)!r} there; choose one of "
                    f"{', '.join(known) or 'none'}"
                )
            chosen = kept
        return chosen


def parse_fail_condition(text: str) -> FailCondition:
    """Reads one condition. Raises UserError where it has another form, operator or no finite number for a limit."""
    found = _SHAPE.fullmatch(text)
    if found is None:
        raise UserError(f"cannot read the condition {text!r}: {_FORM}; operators are {' '.join(_OPERATORS)}")
    try:
        limit = float(found["limit"])
    except ValueError:
        limit = math.nan
    if not math.isfinite(limit):
        raise UserError(f"cannot read the condition {text!r}: {found['limit']!r} is no number; {_FORM}")
    by = tuple(column.strip() for column in (found["by"] or "").split("+") if column.strip())
    return FailCondition(text.strip(), found["figure"], found["metric"], by, found["op"], limit)


def _name(value: Value) -> str:
    by = f", by={_word(value.by)}" if value.by else ""
    return f"{value.figure}({value.metric}{by})"


def _word(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else "+".join(value)
