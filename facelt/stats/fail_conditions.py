"""Fail conditions of an audit, such as `gap(rank1) > 0.05`: parser and evaluation against reported disparities.

The whole language is `figure(metric) op number` or `figure(metric, by=column) op number`; `by=gender+age_band` names
an intersection of columns. Nothing is evaluated as code.
"""

import math
import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass
from types import MappingProxyType

from facelt.errors import UserError
from facelt.stats.disparity import DisparityEstimate

_OPERATORS = MappingProxyType({">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le})

_WORD = r"[A-Za-z_][A-Za-z0-9_.@-]*"
# Column names come from the user's table: any characters but those of the syntax.
_COLUMN = r"[^(),=+<>]+"
_SYNTAX = re.compile(
    rf"\s*(?P<figure>{_WORD})\s*\(\s*(?P<metric>{_WORD})\s*"
    rf"(?:,\s*by\s*=\s*(?P<by>{_COLUMN}(?:\+{_COLUMN})*))?\)\s*(?P<op>[<>]=?)\s*(?P<limit>\S+)\s*"
)
_EXAMPLES = "write it as gap(rank1) > 0.05 or gap(rank1, by=gender+age_band) > 0.05"


@dataclass(frozen=True)
class FailCondition:
    """A parsed condition; `text` is the user's, `by` is empty for every grouping of the report."""

    text: str
    figure: str
    metric: str
    by: tuple[str, ...]
    op: str
    limit: float

    def reasons(self, estimates: Iterable[DisparityEstimate]) -> list[str]:
        """Returns one line for each disparity that meets the condition.

        Raises:
            UserError: the report has no such figure, metric or grouping (the message lists those it has); or a
                disparity has no value, or only a lower bound that does not decide the condition. A pipeline must not
                pass because something was not measured.
        """
        selected = self._select(list(estimates))
        for estimate in selected:
            if (reason := self._undecided_reason(estimate)) is not None:
                raise UserError(f"{self.text!r} cannot be decided: {_name(estimate)} {reason}")
        return [
            f"{self.text}: {_name(estimate)} is {'at least ' if estimate.at_least else ''}{estimate.value:.4g}"
            for estimate in selected
            if _OPERATORS[self.op](estimate.value, self.limit)
        ]

    def _undecided_reason(self, estimate: DisparityEstimate) -> str | None:
        if estimate.value is None or math.isnan(estimate.value):
            return f"has no value, {estimate.note or 'there was nothing to measure'}"
        # A lower bound above the limit decides `>`; one that is not below the limit decides `<`.
        is_above_wanted = self.op.startswith(">")
        if estimate.at_least and _OPERATORS[self.op](estimate.value, self.limit) != is_above_wanted:
            return f"is at least {estimate.value:.4g} and may be more, {estimate.note or 'a group has no error'}"
        return None

    def _select(self, estimates: list[DisparityEstimate]) -> list[DisparityEstimate]:
        selected = estimates
        for field, value in (("figure", self.figure), ("metric", self.metric), ("by", self.by)):
            if field == "by" and not value:
                continue
            matching = [estimate for estimate in selected if getattr(estimate, field) == value]
            if not matching:
                choices = sorted({_joined(getattr(estimate, field)) for estimate in selected})
                noun = "grouping" if field == "by" else field
                raise UserError(
                    f"{self.text!r}: this report has no {noun} {_joined(value)!r} there; choose one of "
                    f"{', '.join(choices) or 'none'}"
                )
            selected = matching
        return selected


def parse_fail_condition(text: str) -> FailCondition:
    """Parses one condition. Raises UserError on another form or operator, or a limit that is not a finite number."""
    match = _SYNTAX.fullmatch(text)
    if match is None:
        raise UserError(f"cannot read the condition {text!r}: {_EXAMPLES}; operators are {' '.join(_OPERATORS)}")
    try:
        limit = float(match["limit"])
    except ValueError:
        limit = math.nan
    if not math.isfinite(limit):
        raise UserError(f"cannot read the condition {text!r}: {match['limit']!r} is not a number; {_EXAMPLES}")
    by = tuple(column.strip() for column in (match["by"] or "").split("+") if column.strip())
    return FailCondition(text.strip(), match["figure"], match["metric"], by, match["op"], limit)


def _name(estimate: DisparityEstimate) -> str:
    by = f", by={_joined(estimate.by)}" if estimate.by else ""
    return f"{estimate.figure}({estimate.metric}{by})"


def _joined(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else "+".join(value)
