"""Fail conditions: parsing, rejected input, and the disparities that meet them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facelt.errors import UserError
from facelt.stats.disparity import DisparityEstimate
from facelt.stats.fail_conditions import _OPERATORS, FailCondition, parse_fail_condition

ESTIMATES = [
    DisparityEstimate("gap", "rank1", ("gender",), 0.087),
    DisparityEstimate("gap", "rank1", ("gender", "age band"), 0.03),
    DisparityEstimate("ratio", "fmr", ("gender",), 3.5, at_least=True),
    DisparityEstimate("garbe", "both", ("gender",), None, note="no group has a false match"),
]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("gap(rank1) > 0.05", ("gap", "rank1", (), ">", 0.05)),
        ("  gap( fnir@0.01 ,by = gender )<=5e-2 ", ("gap", "fnir@0.01", ("gender",), "<=", 0.05)),
        ("ratio(fmr, by=gender + age band)>=2", ("ratio", "fmr", ("gender", "age band"), ">=", 2.0)),
        ("fdr(both) < -1", ("fdr", "both", (), "<", -1.0)),
    ],
)
def test_parses(text, wanted):
    result = parse_fail_condition(text)
    assert (result.figure, result.metric, result.by, result.op, result.limit) == wanted
    assert result.text == text.strip()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "gap > 0.05",
        "gap(rank1)",
        "gap(rank1) == 0.05",
        "gap(rank1) => 0.05",
        "gap(rank1) > 0.05; import os",
        "gap(rank1) > 0.05 or gap(fmr) > 1",
        "gap(rank1, gender) > 0.05",
        "gap(rank1, by=) > 0.05",
        "gap(rank1, by=a, by=b) > 0.05",
        "__import__('os').system('true') > 0",
    ],
)
def test_other_forms_are_refused(text):
    with pytest.raises(UserError, match=r"write it as gap\(rank1\) > 0.05"):
        parse_fail_condition(text)


@pytest.mark.parametrize("limit", ["nan", "inf", "five", "0,05", "1__0"])
def test_a_limit_that_is_not_a_number_is_refused(limit):
    with pytest.raises(UserError, match="is not a number"):
        parse_fail_condition(f"gap(rank1) > {limit}")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_parsed_or_refused(text):
    message = ""
    try:
        result = parse_fail_condition(text)
    except UserError as error:
        result, message = None, str(error)
    assert isinstance(result, FailCondition) or message.startswith("cannot read the condition")
    assert "\n" not in message


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(_OPERATORS)), st.floats(-10, 10), st.floats(-10, 10))
def test_compares_as_the_operator_does(op, value, limit):
    compared = {">": value > limit, ">=": value >= limit, "<": value < limit, "<=": value <= limit}[op]
    result = parse_fail_condition(f"gap(rank1) {op} {limit!r}").reasons(
        [DisparityEstimate("gap", "rank1", ("g",), value)]
    )
    assert bool(result) == compared


def test_reasons_name_the_figure_and_its_value():
    assert parse_fail_condition("gap(rank1) > 0.05").reasons(ESTIMATES) == [
        "gap(rank1) > 0.05: gap(rank1, by=gender) is 0.087"
    ]
    assert (
        parse_fail_condition("gap(rank1) > 0.01")
        .reasons(ESTIMATES)[1]
        .endswith("gap(rank1, by=gender+age band) is 0.03")
    )
    assert parse_fail_condition("gap(rank1, by=gender+age band) > 0.05").reasons(ESTIMATES) == []


@pytest.mark.parametrize("text", ["ratio(fmr) > 3", "ratio(fmr) >= 3.5"])
def test_a_lower_bound_above_the_limit_is_a_reason(text):
    assert parse_fail_condition(text).reasons(ESTIMATES)[0].endswith("is at least 3.5")


def test_a_lower_bound_decides_only_one_side():
    assert parse_fail_condition("ratio(fmr) > 4").op == ">"
    with pytest.raises(UserError, match=r"is at least 3\.5 and may be more, a group has no error"):
        parse_fail_condition("ratio(fmr) > 4").reasons(ESTIMATES)
    with pytest.raises(UserError, match=r"is at least 3\.5 and may be more"):
        parse_fail_condition("ratio(fmr) < 4").reasons(ESTIMATES)
    assert parse_fail_condition("ratio(fmr) < 3").reasons(ESTIMATES) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("spread(rank1) > 0", "no figure 'spread' there; choose one of gap, garbe, ratio"),
        ("gap(fmr) > 0", "no metric 'fmr' there; choose one of rank1"),
        ("gap(rank1, by=age) > 0", r"no grouping 'age' there; choose one of gender, gender\+age band"),
        ("garbe(both) > 0", r"cannot be decided: garbe\(both, by=gender\) has no value, no group has a false match"),
    ],
)
def test_what_the_report_lacks_does_not_pass(text, words):
    with pytest.raises(UserError, match=words):
        parse_fail_condition(text).reasons(ESTIMATES)
