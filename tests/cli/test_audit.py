"""`facelt audit` on the command line: the provenance of its report and page."""

import json
import subprocess

import numpy as np
import pytest


@pytest.fixture
def audit_of_scores(cli, tmp_path, monkeypatch):
    """audit_of_scores(*words) -> (exit code, output, error) of an audit of a small scores file."""
    random = np.random.default_rng(0)
    people = [f"p{number}" for number in range(8)]
    pairs = [(a, b) for a in people for b in people if a <= b for _ in range(3)]
    rows = [f"{a},{b},{random.normal(2 * (a == b)):.4f},{int(a == b)}" for a, b in pairs]
    (tmp_path / "scores.csv").write_text("id1,id2,score,label\n" + "\n".join(rows))
    (tmp_path / "people.csv").write_text("identity,group\n" + "\n".join(f"{p},{'ab'[int(p[1]) % 2]}" for p in people))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["facelt", "audit", "--title", "A & <b>"])
    words = ["--scores", "scores.csv", "--attributes", "people.csv", "--by", "group", "--threshold-at", "fmr=0.1"]
    words += ["--set", "statistics.seed=7", "--out", "report"]
    return lambda *more: cli("audit", *words, *more)


def test_the_run_is_in_the_report_and_on_the_page(audit_of_scores, tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    code, _, error = audit_of_scores("--min-identities", 3)
    assert code == 0, error
    report = json.loads((tmp_path / "report/report.json").read_text())
    assert list(report)[-1] == "run"
    run, page = report["run"], (tmp_path / "report/report.html").read_text()
    assert run["date"] == "2023-11-14T22:13:20Z"
    assert run["command"] == "facelt audit --title 'A & <b>'"
    assert run["seeds"] == {"statistics.seed": 7}
    assert run["settings"]["min_identities"] == 3
    assert run["settings"]["threshold"]["fmr"] == 0.1
    assert [item["path"] for item in run["inputs"]] == ["scores.csv", "people.csv"]
    for item in run["inputs"]:
        again = subprocess.run(["bash", "-c", item["command"]], capture_output=True, text=True, check=True)
        assert again.stdout.split()[0] == item["sha256"]
        assert item["sha256"] in page
    assert "2023-11-14T22:13:20Z" in page
    assert "A &amp; &lt;b&gt;" in page
    first = (tmp_path / "report/report.json").read_bytes()
    code, output, error = audit_of_scores("--min-identities", 4)
    refusal = (
        "error: report: exists already and is not empty; choose another folder, or replace this one with --overwrite"
    )
    assert (code, output, error) == (1, "", f"{refusal}\n")
    assert (tmp_path / "report/report.json").read_bytes() == first
    assert audit_of_scores("--min-identities", 3, "--overwrite", "--fail-if", "gap(fnmr, by=Group) > 1")[0] in (0, 4)
    report = json.loads((tmp_path / "report/report.json").read_text())
    assert "has no such disparity" not in "".join(report["conditions"][0]["reasons"])
    assert audit_of_scores("--min-identities", 3, "--overwrite")[0] == 0
    assert (tmp_path / "report/report.json").read_bytes() == first
