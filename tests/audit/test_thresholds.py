"""Thresholds that no score lies above are noted in JSON, on the page and on the terminal."""

import json

import numpy as np
import pytest
import yaml

from facelt.audit.run import run_audit


def top_notes(settings, **changes):
    notes = run_audit(settings(**{"by": [["group"]], **changes})).report.notes
    return [note for note in notes if note.startswith("The threshold for ")]


def test_a_usual_threshold_has_no_note(faces, settings):
    assert top_notes(settings) == []
    assert top_notes(settings, gallery={"path": str(faces.gallery())}) == []


def test_copies_of_one_image_under_many_names_are_noted(faces, settings, cli):
    # The first image of each person is one and the same: more non-mated pairs and searches than the rates allow.
    faces.value_ND[::4] = faces.value_ND[0]
    config = settings(threshold={"fmr": 0.02, "fpir": 0.1})
    report = run_audit(config).report
    assert report.thresholds["pairs"].score > 0.99999
    pairs, searches = [note for note in report.notes if note.startswith("The threshold for ")]
    assert pairs.startswith("The threshold for pairs, 1.0000, set on the audited set, is as high as the similarity ")
    assert searches.startswith("The threshold for searches, 1")
    assert report.overall["fnmr"].rate == 1
    path = faces.folder / "audit.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
    code, output, error = cli("audit", "--config", path)
    assert code == 0, error
    folder = faces.folder / "report"
    assert pairs in json.loads((folder / "report.json").read_text())["notes"]
    assert pairs in (folder / "report.html").read_text()
    assert pairs in " ".join(output.split())


@pytest.mark.parametrize(("score", "noted"), [(0.5, False), (0.9999, True), (1.5, True)])
def test_a_given_threshold_is_compared_with_the_highest_score(faces, settings, score, noted):
    scores = faces.value_ND.astype(np.float64) @ faces.value_ND.T.astype(np.float64)
    highest = scores[np.triu_indices(len(scores), 1)].max()
    assert (score >= highest) == noted
    notes = top_notes(settings, threshold={"score": score})
    assert len(notes) == 2 * noted
    for note in notes:
        reason = (
            "is as high as the similarity of two copies" if score > 1 else "is not below the highest score observed"
        )
        assert reason in note
        assert "set on" not in note


def test_a_scores_file_whose_highest_score_is_shared_is_noted(faces, settings):
    people = [f"Person_{number:02d}" for number in range(8)]
    lines = [f"{a},{b},{99 if a < 'Person_02' else 7},{int(a == b)}" for a in people for b in people]
    path = faces.folder / "scores.csv"
    path.write_text("\n".join(["id1,id2,score,label", *lines]))
    (note,) = top_notes(settings, embeddings=None, scores=str(path), threshold={"fmr": 0.2})
    assert note.startswith("The threshold for pairs, 9")
    assert "is not below the highest score observed" in note
