"""Fail conditions of an audit, such as `gap(rank1).high > 0.05`: parser and evaluation against reported disparities.

The whole language is `figure(metric)[.low|.high] op number`, with `by=column` after the metric to choose a grouping;
`by=gender+age_band` names an intersection of columns, whose names ignore case. Nothing is evaluated as code.
"""

import math
import operator
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from facelt.errors import UserError
from facelt.stats.disparity import DisparityEstimate
from facelt.utils.tables import column_name

_OPERATORS = MappingProxyType({">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le})

_WORD = r"[A-Za-z_][A-Za-z0-9_.@-]*"
# Column names come from the user's table: any characters but those of the syntax.
_COLUMN = r"[^(),=+<>]+"
_SYNTAX = re.compile(
    rf"\s*(?P<figure>{_WORD})\s*\(\s*(?P<metric>{_WORD})\s*"
    rf"(?:,\s*by\s*=\s*(?P<by>{_COLUMN}(?:\+{_COLUMN})*))?\)\s*(?:\.\s*(?P<end>low|high)\s*)?"
    r"(?P<op>[<>]=?)\s*(?P<limit>\S+)\s*"
)
_EXAMPLES = "write it as gap(rank1) > 0.05, gap(rank1).high > 0.05 or gap(rank1, by=gender+age_band) > 0.05"

# A condition fails if it is met, holds if it is not, and is undecided if estimate and limits disagree.
State = Literal["holds", "fails", "undecided"]


@dataclass(frozen=True)
class Outcome:
    """State of a condition for one report; `reasons` has a line for each disparity that fails or is undecided."""

    state: State
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class FailCondition:
    """A parsed condition; `text` is the user's, `by` is empty for every grouping of the report.

    `end` is `low` or `high` if the condition is on that limit, empty if it is on the estimate.
    """

    text: str
    figure: str
    metric: str
    by: tuple[str, ...]
    end: str
    op: str
    limit: float

    def check(self, disparities: Collection[tuple[str, str]], groupings: Collection[tuple[str, ...]]) -> None:
        """Raises UserError if an audit of these figures and metrics, by these groupings, cannot have the condition's.

        The message lists the known ones.
        """
        figures = dict.fromkeys(figure for figure, _ in disparities)
        metrics = dict.fromkeys(metric for figure, metric in disparities if figure == self.figure)
        known = [("figure", self.figure, figures), ("metric", self.metric, metrics)]
        if self.by:
            known.append(("grouping", _joined(self.by), [_joined(by) for by in groupings]))
        for noun, value, choices in known:
            if value not in choices:
                raise UserError(
                    f"--fail-if {self.text!r}: this audit has no {noun} {value!r} there; choose one of "
                    f"{', '.join(choices) or 'none'}"
                )

    def evaluate(self, estimates: Iterable[DisparityEstimate]) -> Outcome:
        """Returns the state of the condition for all disparities that it is about.

        It fails if one of them meets it, else it is undecided if one of them is: if it has no value or no limits, or if
        the estimate and both its limits do not all meet or all miss the condition. A pipeline must not pass because
        something was not measured.
        """
        selected = [
            estimate
            for estimate in estimates
            if (estimate.figure, estimate.metric) == (self.figure, self.metric) and self.by in ((), estimate.by)
        ]
        if not selected:
            return Outcome("undecided", (f"{self.text}: the report has no such disparity",))
        states = [self._state(estimate) for estimate in selected]
        state = next((state for state in ("fails", "undecided") if state in states), "holds")
        reasons = [
            f"{self.text}: {_name(estimate)} {_description(estimate)}"
            for estimate, of_estimate in zip(selected, states, strict=True)
            if of_estimate != "holds" and of_estimate == state
        ]
        return Outcome(state, tuple(reasons))

    def _state(self, estimate: DisparityEstimate) -> State:
        if estimate.value is None or math.isnan(estimate.value):
            return "undecided"
        has_limits = estimate.low is not None or estimate.high is not None
        # Without an upper limit the true value may be anything above the lower one.
        ends = {"low": estimate.low, "high": math.inf if estimate.high is None else estimate.high}
        if self.end:
            values = [ends[self.end]] if has_limits else []
        elif has_limits:
            values = [estimate.value, *ends.values()]
        else:
            values = [estimate.value, *([math.inf] if estimate.at_least else [])]
        met = {_OPERATORS[self.op](value, self.limit) for value in values}
        if len(met) != 1:
            return "undecided"
        return "fails" if met.pop() else "holds"


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
    by = tuple(filter(None, map(column_name, (match["by"] or "").split("+"))))
    return FailCondition(text.strip(), match["figure"], match["metric"], by, match["end"] or "", match["op"], limit)


def _name(estimate: DisparityEstimate) -> str:
    by = f", by={_joined(estimate.by)}" if estimate.by else ""
    return f"{estimate.figure}({estimate.metric}{by})"


def _description(estimate: DisparityEstimate) -> str:
    """Returns value and limits of a disparity, as `is at least 3.5, limits 1.2 and none`."""
    if estimate.value is None or math.isnan(estimate.value):
        return f"has no value, {estimate.note or 'there was nothing to measure'}"
    text = f"is {'at least ' if estimate.at_least else ''}{estimate.value:.4g}"
    if estimate.low is not None or estimate.high is not None:
        low, high = ("none" if end is None else f"{end:.4g}" for end in (estimate.low, estimate.high))
        text += f", limits {low} and {high}"
    return f"{text}, {estimate.note}" if estimate.at_least and estimate.note else text


def _joined(columns: tuple[str, ...]) -> str:
    return "+".join(columns)
