"""docs/configuration.md: up to date, and every key of every schema in it."""

from facelt.config.train import OptimConfig
from tests.config.reference_page import MARK, PAGE, TOP, Page, undescribed_keys


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


def test_training_keys_are_explained():
    page = Page()
    page.text()
    starts = ("facelt train", "train: ", "kind of data: ")
    models = [model for model, heading in page.headings.items() if heading.startswith(starts)]
    assert OptimConfig in models
    undescribed = {f"{model.__name__}.{key}" for model in models for key in undescribed_keys(model)}
    # The names of implementations are explained by their sections.
    assert {key for key in undescribed if not key.endswith((".kind", "Config.name"))} == set()
