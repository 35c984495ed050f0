"""docs/configuration.md: up to date, and every key of every schema in it."""

from tests.config.reference_page import MARK, PAGE, TOP, Page, implementations_of, undescribed_keys


def test_the_committed_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == Page().text(), "run `make docs`"


def test_every_model_has_a_section_with_all_of_its_keys():
    page = Page()
    text = page.text().partition(MARK)[2].replace("\n### ", "\n## ")
    sections = dict(section.split("\n", 1) for section in text.split("\n## ")[1:])
    assert sections.keys() == set(page.headings.values())
    for model, heading in page.headings.items():
        rows = [line for line in sections[heading].splitlines() if line.startswith("| `")]
        assert [row.split("`")[1] for row in rows] == list(model.model_fields)
    assert set(TOP.values()) < page.headings.keys()


def test_a_row_states_type_limits_and_default():
    text = Page().text()
    assert "| `batch` | integer ≥ 2 | `128` |" in text
    assert '| `keep` | `best`, `last` | `"best"` |' in text
    assert "| `out` | path | *required* |" in text
    assert "| `sets` | mapping of text to path | `{}` |" in text
    assert "| `stages` | list of section: [stages](#train-stages), at least 1 entry | *required* |" in text


def test_every_key_is_explained():
    page = Page()
    page.text()
    assert len(page.headings) > 40
    # The names of implementations are explained by their sections.
    undescribed = {
        f"{heading}: {key}"
        for model, heading in page.headings.items()
        for key in undescribed_keys(model)
        if not (key in ("name", "kind") and implementations_of(model))
    }
    assert undescribed == set()
