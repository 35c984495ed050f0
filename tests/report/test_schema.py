"""Report schemas: the dump of a model equals the stored file, byte for byte."""

import json
from pathlib import Path

import numpy as np
import pytest

from facelt.report.audit_schema import AuditReport
from facelt.report.megaface_schema import MegafaceReport
from facelt.report.schema import EvaluationReport, VerificationReport
from facelt.utils.json_values import json_text

STORED = sorted((Path(__file__).parent / "data").glob("*.json"))
MODELS = {
    "audit": AuditReport,
    "evaluation": EvaluationReport,
    "megaface": MegafaceReport,
    "verification": VerificationReport,
}


def model_of(path):
    return MODELS[path.stem.partition("_")[0]]


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_the_dump_equals_the_stored_report(path):
    text = path.read_text(encoding="utf-8")
    report = model_of(path).build(json.loads(text))
    assert json_text(report.json_values()) == text


def test_every_schema_has_a_stored_report():
    assert {model_of(path) for path in STORED} == set(MODELS.values())


def key_paths(part, path=()):
    """Returns the paths of all keys of facelt's objects; tables by name (files, models, bands) may have any keys."""
    if isinstance(part, dict):
        for key, value in part.items():
            yield (*path, key)
            yield from key_paths(value, (*path, key))
    elif isinstance(part, list) and part:
        yield from key_paths(part[0], (*path, 0))


# Keys that may be absent, and tables whose keys are names.
OPTIONAL = {"schema", "weights_sha256", "comparison", "verification", "open_set"}
TABLES = {"files", "models", "thresholds", "overall", "rates", "confusion", "bands"}
ROW_TABLES = {"confusion"}


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_every_missing_key_is_named_in_one_line(path):
    values = json.loads(path.read_text(encoding="utf-8"))
    for *parents, key in key_paths(values):
        inside_names = parents and parents[-1] in TABLES and not isinstance(key, int)
        if key in OPTIONAL or inside_names or {"models"} & set(parents) or ROW_TABLES & set(parents):
            continue
        spoiled = json.loads(json.dumps(values))
        part = spoiled
        for parent in parents:
            part = part[parent]
        del part[key]
        with pytest.raises(ValueError, match=rf"lacks {key} \(schema facelt\.") as caught:
            model_of(path).build(spoiled)
        assert "\n" not in str(caught.value)


def test_an_unknown_key_and_a_wrong_value_are_named():
    values = json.loads((Path(__file__).parent / "data" / "megaface_demo.json").read_text(encoding="utf-8"))
    with pytest.raises(ValueError, match=r"^colour: Extra inputs are not permitted, got 'red' \(schema"):
        MegafaceReport.build({**values, "colour": "red"})
    values["suite"]["sizes"][1] = "100"
    with pytest.raises(ValueError, match=r"^suite\.sizes\[1\]: Input should be a valid integer, got '100' \(schema"):
        MegafaceReport.build(values)


def test_the_schema_is_part_of_every_report():
    values = json.loads((Path(__file__).parent / "data" / "evaluation_closed.json").read_text(encoding="utf-8"))
    del values["schema"]
    values["overall"] = np.float32("nan")
    report = EvaluationReport.build(values)
    assert next(iter(report.json_values())) == "schema"
    assert report.overall is None
