"""Tables of a MegaFace report: columns, rows, and counts."""

from facelt.report.megaface import RateColumn, count_rows, headline_rows, rate_columns, rate_rows
from facelt.report.megaface_schema import MegafaceReport

TABLE_4 = ["many", "few", "one", "zero", "full", "male", "female"]


def columns(values):
    return rate_columns(MegafaceReport.build(values))


def rows(values):
    return rate_rows(MegafaceReport.build(values).rows, columns(values))


def test_table_4_comes_first_and_each_group_stays_together(report):
    last = report["rows"][0]["figures"][-1]
    report["rows"][2]["figures"] += [
        {**last, "group": "region", "name": "north"},
        {**last, "group": "age", "name": "over 60"},
        {**last, "group": "gender", "name": "unknown"},
    ]
    shown = columns(report)
    assert [column.name for column in shown] == [*TABLE_4, "unknown", "under 40", "over 60", "north"]
    assert [column.title for column in shown[-4:]] == ["Unknown", "under 40", "over 60", "north"]


def test_equal_names_of_two_attributes_stay_apart(report):
    last = report["rows"][0]["figures"][-1]
    report["rows"][0]["figures"] = [{**last, "group": "hat", "name": "yes"}, {**last, "group": "beard", "name": "yes"}]
    report["rows"] = report["rows"][:1]
    assert columns(report)[-2:] == (RateColumn("hat", "yes"), RateColumn("beard", "yes"))


def test_a_row_holds_none_where_it_has_no_such_figure(report):
    report["rows"][1]["figures"] = report["rows"][1]["figures"][:1]
    result = rows(report)
    assert [cell and round(cell.rate, 4) for cell in result[1].cells] == [*[None] * 4, 0.8402, *[None] * 3]


def test_the_headline_is_the_smallest_rank_among_the_most_distractors(report):
    plain = report["rows"][0]
    report["rows"] = [{**plain, "distractors": 10}, {**plain, "rank": 10}, plain, {**plain, "distractors": 1000}]
    (result,) = headline_rows(rows(report))
    assert (result.rank, result.distractors) == (1, 6732)


def test_counts_are_named_by_model_or_by_row_where_they_differ(report):
    assert [name for name, _ in count_rows(rows(report))] == [""]
    report["rows"][0]["figures"][2] = {**report["rows"][0]["figures"][2], "pairs": 5}
    assert [name for name, _ in count_rows(rows(report))] == ["plain", "oltr"]
    report["rows"][1]["figures"][2] = {**report["rows"][1]["figures"][2], "pairs": 5}
    assert [name for name, _ in count_rows(rows(report))] == ["plain, oltr · direct", "oltr · meta"]
