"""Provenance of a report: date, command line, seeds and inputs."""

from datetime import UTC, datetime

import pytest

from facelt.errors import UserError
from facelt.utils import provenance
from facelt.utils.provenance import InputHash, run_provenance

SETTINGS = {"seed": 3, "statistics": {"seed": 0, "level": 0.95}, "noise": {"mode": "drop"}}


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["/bin/facelt", "audit", "--title", "a b"], "facelt audit --title 'a b'"),
        (["eval_megaface/run.py", "--config", "x.yaml"], "facelt audit --config x.yaml"),
    ],
)
def test_the_values_of_a_run(monkeypatch, argv, command):
    monkeypatch.setattr(provenance.sys, "argv", argv)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    item = InputHash("a", "00", "sha256sum a")
    values = run_provenance("audit", SETTINGS, [item, item])
    assert values["date"] == "1970-01-02T00:00:00Z"
    assert values["command"] == command
    assert values["settings"] == SETTINGS
    assert values["seeds"] == {"seed": 3, "statistics.seed": 0}
    assert values["inputs"] == [{"path": "a", "sha256": "00", "command": "sha256sum a"}]


def test_the_date_is_that_of_the_run_in_utc(monkeypatch):
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    before = datetime.now(UTC).replace(microsecond=0)
    date = datetime.fromisoformat(run_provenance("audit", {}, [])["date"])
    assert before <= date <= datetime.now(UTC)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(UserError, match="SOURCE_DATE_EPOCH is 'yesterday'; it must be seconds since 1970"):
        run_provenance("audit", {}, [])
