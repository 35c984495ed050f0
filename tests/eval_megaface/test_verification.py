"""Verification: equal to independent results and to plain loops, unsupported rates are marked, passes are cached."""

import itertools

import numpy as np
import pytest

from eval_megaface import thresholds as thresholds_module
from eval_megaface.config import MegafaceConfig
from eval_megaface.evaluate import evaluate_megaface


@pytest.fixture
def passes(monkeypatch):
    """Records the passes."""
    calls, plain = [], thresholds_module.verification_rates

    def counted(*arguments, **named):
        calls.append(named["cosine"])
        return plain(*arguments, **named)

    monkeypatch.setattr(thresholds_module, "verification_rates", counted)
    return calls


def tars(section):
    return [[point["tar"] for point in entry["points"]] for entry in section["rates"]]


def test_real_embeddings(real_config):
    report = evaluate_megaface(MegafaceConfig.model_validate(real_config | {"verification": True})).json_values()
    section = report["verification"]
    assert (section["mated"], section["nonmated"]) == (26202 // 2, 607 * 6732)
    (entry,) = section["rates"]
    assert (entry["model"], entry["kind"]) == ("mobile", "direct")
    result = {point["wanted"]: point for point in entry["points"]}
    assert list(result) == [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
    # From the whole matrix of sorted scores, by a separate program.
    for far, tar in {1e-5: 0.7400, 1e-4: 0.8227, 1e-3: 0.8968, 1e-2: 0.9499, 1e-1: 0.9879}.items():
        assert result[far]["tar"] == pytest.approx(tar, abs=5e-5)
        assert result[far]["supported"]
        assert result[far]["fmr"] <= far
        assert result[far]["fmr"] == result[far]["false_matches"] / section["nonmated"]
    # Four false matches are allowed: a figure, but an uncertain one.
    assert (result[1e-6]["supported"], result[1e-6]["false_matches"]) == (False, 4)
    assert section["smallest_far"] == 30 / section["nonmated"]
    thresholds = [point["threshold"] for point in entry["points"]]
    assert thresholds == sorted(thresholds, reverse=True)
    assert entry["det"]["fmr"] == sorted(entry["det"]["fmr"])
    assert entry["det"]["fnmr"] == sorted(entry["det"]["fnmr"], reverse=True)
    assert entry["seconds"] > 0
    assert report["open_set"] is None


def plain_tar(probe_PD, identities, distractor_GD, far):
    """TAR by loops over pairs: what lies above the first non-mated score too many."""
    mated = [
        float(np.dot(probe_PD[a].astype(float), probe_PD[b]))
        for a, b in itertools.combinations(range(len(identities)), 2)
        if identities[a] == identities[b]
    ]
    nonmated = sorted((float(np.dot(p.astype(float), g)) for p in probe_PD for g in distractor_GD), reverse=True)
    allowed = int(far * len(nonmated))
    return sum(score > nonmated[allowed] for score in mated) / len(mated) if allowed else None


def test_every_kind_equals_plain_loops(small, second):
    models, arrays = second
    section = small.run("noise.mode=raw", "verification=true", models=models)["verification"]
    assert [(entry["model"], entry["kind"]) for entry in section["rates"]] == [
        ("plain", "direct"), ("second", "direct"), ("second", "meta"), ("second", "meta_unit"),
    ]  # fmt: skip
    identities = [path.split("/")[0] for path in small.probes]
    values = [(small.probe_PD, small.distractor_GD)]
    values += [(arrays["probes"][kind], arrays["distractors"][kind]) for kind in ("direct", "meta", "meta_unit")]
    for result, (probe_PD, distractor_GD) in zip(tars(section), values, strict=True):
        expected = [plain_tar(probe_PD, identities, distractor_GD, far) for far in 10.0 ** np.arange(-6, 0)]
        assert result == pytest.approx(expected)
    points = section["rates"][0]["points"]
    assert points[0]["reason"] == "a rate of 1e-06 needs 1,000,000 non-mated comparisons; there are 270"
    assert [point["supported"] for point in points] == [False] * 6
    # Nothing is made up where there is no figure.
    assert {points[0][key] for key in ("tar", "fmr", "threshold", "false_matches")} == {None}


def test_all_lists_count_each_distractor_once(small, write_list):
    write_list(small.root / "lists/megaface_features_list.json_5_2", small.distractors[3:8])
    section = small.run("noise.mode=raw", "suite.sizes=[5]", "verification=true")["verification"]
    assert (section["distractors"], section["nonmated"]) == (8, 9 * 8)


def test_no_pair_at_all(small, write_list):
    write_list(small.root / "facescrub.json", [path for path in small.probes if path.endswith("_0.jpg")])
    section = small.run("verification=true")["verification"]
    assert tars(section) == [[None] * 6]
    assert section["rates"][0]["points"][-1]["reason"] == "there are 0 mated and 112 non-mated comparisons"
    assert section["rates"][0]["det"] == {"threshold": [], "fmr": [], "fnmr": []}


def test_it_is_off_by_default(small, passes):
    assert small.run()["verification"] is None
    assert passes == []


def test_a_pass_is_not_made_again(small, passes):
    first = small.run("verification=true")
    assert small.run("verification=true", "interval.level=0.8")["verification"] == first["verification"]
    assert len(passes) == 1
    small.run("verification=true", "noise.mode=raw")
    assert len(passes) == 2
    array = np.lib.format.open_memmap(small.root / "distractors/direct.npy", mode="r+")
    array[1, 3] += 1e-3
    array.flush()
    small.run("verification=true")
    assert len(passes) == 3


def test_an_interrupted_run_keeps_what_was_finished(small, second, passes, monkeypatch):
    models, _ = second
    complete = small.run("verification=true", models=models, out=str(small.root / "whole"))["verification"]
    passes.clear()
    plain = thresholds_module.verification_rates

    def stop_at_third(*arguments, **named):
        if len(passes) == 2:
            raise KeyboardInterrupt
        return plain(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(thresholds_module, "verification_rates", stop_at_third)
        with pytest.raises(KeyboardInterrupt):
            small.run("verification=true", models=models)
    passes.clear()
    resumed = small.run("verification=true", models=models)["verification"]
    assert tars(resumed) == tars(complete)
    # Cosines of the unit kinds, of which the last was not reached, and inner products of `meta`.
    assert passes == [False, True]


def test_a_threshold_that_copies_decide_is_noted(small, write_store):
    small.distractor_GD[:8] = small.probe_PD[:8]
    write_store(small.root / "leaking", small.distractors, {"direct": small.distractor_GD})
    models = small.config()["models"]
    usual = small.run("verification=true", "open_set={}")
    assert not [note for note in usual["notes"] if "the threshold of" in note]
    models["plain"]["distractors"] = str(small.root / "leaking")
    report = small.run("verification=true", "open_set={}", "noise.mode=raw", "allow_duplicates=true", models=models)
    (note,) = [note for note in report["notes"] if "the threshold of" in note]
    # 270 non-mated pairs allow 2 errors at 0.01 and 27 at 0.1; 8 of them are copies.
    assert note == (
        "plain, direct: the threshold of similarity for FAR 0.01 is as high as the similarity of two copies of one "
        "image, so that no other pair can match."
    )
