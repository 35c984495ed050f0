"""CSV writing: formulas are neutralised, names are preserved."""

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facelt.utils.tables import Table, csv_text, safe_cell

FORMULA_STARTS = "=+-@\t\r\n\uff1d\uff0b\uff0d\uff20"


@pytest.mark.parametrize("start", FORMULA_STARTS)
def test_a_cell_that_would_run_is_marked_as_text(start):
    assert safe_cell(start + "cmd()") == "'" + start + "cmd()"
    assert safe_cell("  " + start + "cmd()").startswith("'")


def test_numbers_and_harmless_text_stay():
    assert safe_cell(-1.5) == -1.5
    assert safe_cell(None) == ""
    assert safe_cell("oltr meta_unit") == "oltr meta_unit"


def test_the_text_of_a_table():
    table = Table(("model", "rate"), [["a,b", 0.25], ['say "x"', None], ["=1+1", -2]])
    assert csv_text(table) == '"model","rate"\r\n"a,b",0.25\r\n"say ""x""",""\r\n"\'=1+1",-2\r\n'


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\x00")), min_size=1))
def test_every_name_comes_back_and_none_runs(names):
    text = csv_text(Table(["name"], [[name] for name in names]))
    result = [row[0] for row in csv.reader(io.StringIO(text, newline=""))][1:]
    assert not any(cell.startswith(tuple(FORMULA_STARTS)) for cell in result)
    assert [cell[1:] if cell.startswith("'") else cell for cell in result] == names
