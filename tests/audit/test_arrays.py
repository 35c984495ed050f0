"""Audit of arrays in memory: the report of the same data in a store, and refusals."""

import types

import numpy as np
import pytest

import facelt
from facelt.audit.run import run_audit
from facelt.errors import UserError

THRESHOLD = {"fmr": 0.02, "fpir": 0.1}


@pytest.fixture
def columns(faces):
    """Attributes of the faces, by column."""
    number = {person: index for index, person in enumerate(sorted(set(faces.identities)))}
    return {
        "key": faces.keys,
        "identity": faces.identities,
        "group": ["a" if number[person] % 2 else "b" for person in faces.identities],
        "age": [20 + 3 * number[person] for person in faces.identities],
    }


def measured(report) -> dict:
    """Returns all of a report but the origin of its inputs."""
    values = report.json_values()
    for key in ("models", "files"):
        values["subject"].pop(key)
    return {key: value for key, value in values.items() if key not in ("created", "versions", "software")}


def test_the_report_is_that_of_a_store(faces, columns, settings):
    changes = {"gallery": {"path": str(faces.gallery())}, "by": [["group"], ["group", "age"]], "bins": {"age": [40]}}
    expected = run_audit(settings(**changes)).report
    options = {"threshold": THRESHOLD, "bins": {"age": [40]}}
    by = ["group", ("group", "age")]
    report = facelt.audit(faces.value_ND, columns, by, gallery=faces.gallery_GD, **options)
    assert [grouping.by for grouping in report.groupings] == [["group"], ["group", "age"]]
    assert measured(report) == measured(expected)


def test_a_data_frame_is_a_dictionary_and_missing_values_are_unknown(faces, columns):
    pandas = pytest.importorskip("pandas")
    group = np.array(columns["group"], dtype=object)
    group[:4], group[4:8] = None, np.nan
    frame = pandas.DataFrame({**columns, "group": group})
    options = {"by": "group", "threshold": THRESHOLD, "min_identities": 2}
    report = facelt.audit(faces.value_ND, frame, **options)
    assert measured(report) == measured(facelt.audit(faces.value_ND, {**columns, "group": [*group]}, **options))
    frame["group"] = frame["group"].astype("string")  # missing values are pandas' NA
    assert measured(report) == measured(facelt.audit(faces.value_ND, frame, **options))
    sizes = {tuple(group.group): group.images for group in report.groupings[0].groups}
    assert sum(sizes.values()) == len(faces.keys)
    assert sizes[("a",)] == columns["group"][8:].count("a")
    assert any("8 of 64 have no group" in note for note in report.notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeddings": np.zeros(64)}, r"embeddings: an array float64 \[64\]; expected numbers"),
        ({"embeddings": np.full((64, 2), "x")}, "embeddings: an array <U1"),
        ({"embeddings": np.zeros((64, 12))}, "64 of 64 images have no usable embedding"),
        ({"embeddings": np.ones((3, 12))}, "attributes: column 'key' has 64 values for 3 embeddings"),
        ({"attributes": ["a"]}, "attributes: expected a mapping of columns or a DataFrame, found list"),
        ({"attributes": {"group": ["a"] * 64}}, "attributes: no column 'identity'; there are group"),
        ({"attributes": {"identity": [None] + ["x"] * 63, "group": ["a"] * 64}}, "attributes: row 0 has no identity"),
        ({"attributes": {"identity": ["x"] * 64, "key": ["k"] * 64}}, "the key 'k' occurs more than once"),
        ({"by": "grup"}, "by: no column 'grup'"),
        ({"by": []}, "facelt.audit: by: "),
        ({"thresold": {}}, "facelt.audit: thresold: unknown key; .*did you mean 'threshold'"),
        ({"bins": {"group": [3]}}, "column 'group': '[ab]' is not a number"),
        ({"gallery": np.ones((2, 3))}, "gallery: embeddings have 3 values, those in embeddings 12"),
        ({"gallery": np.full((2, 12), np.nan)}, "gallery: 'row 0' "),
    ],
)
def test_a_mistake_is_named(faces, columns, change, message):
    arguments = {"embeddings": faces.value_ND, "attributes": columns, "by": "group", "threshold": THRESHOLD}
    with pytest.raises(UserError, match=message):
        facelt.audit(**{**arguments, **change})


def test_the_package_is_still_a_package():
    import facelt.audit.run as module

    assert isinstance(facelt.audit, types.ModuleType)
    assert facelt.audit.run is module
    assert module.run_audit is run_audit
