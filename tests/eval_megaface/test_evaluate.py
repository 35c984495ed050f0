"""MegaFace evaluation against reference figures and plain loops, for every model and kind."""

import itertools
import json

import numpy as np
import pytest
from scipy import stats

from eval_megaface.config import MegafaceConfig
from eval_megaface.evaluate import evaluate_megaface
from facelt.errors import UserError
from facelt.stats.intervals import ClusteredCounts, rate_intervals
from tests.feature_files import write_feature


def figures_of(row):
    return {figure["name"]: figure for figure in row["figures"]}


def test_golden_tree_exactly(golden, tmp_path):
    folder = golden / "megaface"
    config = {
        "out": tmp_path,
        "suite": {"root": folder, "facescrub_list": "facescrub_features_list.json", "megaface_lists": "."},
        "models": {
            "golden": {
                "probes": folder / "features/facescrub",
                "distractors": folder / "features/megaface",
                "algorithm": "golden",
            }
        },
        "noise": {"mode": "raw"},
    }
    report = evaluate_megaface(MegafaceConfig.model_validate(config)).json_values()
    expected = json.loads((folder / "expected.json").read_text())
    (cmc,) = report["cmc"]
    for rank, rate in expected["rank_accuracy"].items():
        assert cmc["rate"][int(rank) - 1] == rate
    assert report["rows"][0]["figures"][0]["rate"] == expected["rank_accuracy"]["1"]
    suite = report["suite"]
    for key in ("probes", "identities", "distractors"):
        assert suite[key] == expected[key]
    assert "golden: no train store, so its shots are not measured." in report["notes"]


@pytest.mark.parametrize("mode", ["drop", "raw"])
@pytest.mark.parametrize("threshold", ["0.7", "0.5", "0.4", "0.35"])
def test_real_embeddings(real_data, real_config, mode, threshold):
    changes = {"ranks": [1, 10], "noise": {"mode": mode}, "shots": {"threshold": float(threshold)}}
    report = evaluate_megaface(MegafaceConfig.model_validate(real_config | changes)).json_values()
    expected = json.loads((real_data / "faces/megaface/expected.json").read_text())["modes"][mode][threshold]
    first, tenth = report["rows"]
    assert (first["rank"], first["distractors"], tenth["rank"]) == (1, 6757, 10)
    result = figures_of(first)
    assert result["full"]["rate"] == pytest.approx(expected["rank1"]["rate"], abs=1e-4)
    assert result["full"]["pairs"] == report["suite"]["pairs"] == expected["rank1"]["pairs"]
    assert figures_of(tenth)["full"]["rate"] == pytest.approx(expected["rank10"], abs=1e-4)
    for name in ("male", "female", "many", "few", "one", "zero"):
        assert result[name]["pairs"] == expected[name]["pairs"]
        if expected[name]["rate"] is None:
            assert result[name]["rate"] is result[name]["low"] is result[name]["high"] is None
        else:
            assert result[name]["rate"] == pytest.approx(expected[name]["rate"], abs=1e-4)
            if result[name]["identities"] > 1:
                assert result[name]["low"] <= result[name]["rate"] <= result[name]["high"]
        assert result[name]["probes"] == expected[name].get("probes", result[name]["probes"])
    (curve,) = report["curves"]
    assert curve["sizes"] == [10, 100, 1000, 6757]
    assert curve["rate"] == sorted(curve["rate"], reverse=True)
    assert curve["rate"][-1] == result["full"]["rate"]
    noise = report["suite"]["noise"]
    assert (noise["probes_removed"], noise["distractors_removed"]) == ((7, 25) if mode == "drop" else (0, 0))


def plain_rate(small, probe_rows, distractor_rows, rank, probe_PD=None):
    """Rank-k by four plain loops."""
    probe_PD = small.probe_PD if probe_PD is None else probe_PD
    hits = pairs = 0
    for mate, probe in itertools.permutations(probe_rows, 2):
        if small.probes[mate].split("/")[0] == small.probes[probe].split("/")[0]:
            score = float(np.dot(probe_PD[mate].astype(float), probe_PD[probe].astype(float)))
            others = [float(np.dot(probe_PD[probe].astype(float), small.distractor_GD[row])) for row in distractor_rows]
            pairs += 1
            hits += sum(other > score for other in others) < rank
    return hits / pairs, pairs


@pytest.mark.parametrize("mode", ["drop", "raw"])
def test_small_suite_equals_plain_loops(small, mode):
    report = small.run(f"noise.mode={mode}", "ranks=[1, 3]")
    keep = [row for row in range(9) if mode == "raw" or "Bob_Ray_2" not in small.probes[row]]
    noisy = () if mode == "raw" else (2, 9)
    large = [row for row in range(30) if row not in noisy]
    small_list = [row for row in range(5) if row not in noisy]
    for row in report["rows"]:
        rate, pairs = plain_rate(small, keep, large, row["rank"])
        assert figures_of(row)["full"]["rate"] == pytest.approx(rate)
        assert figures_of(row)["full"]["pairs"] == pairs
    expected = [plain_rate(small, keep, rows, 1)[0] for rows in (small_list, large)]
    assert report["curves"][0]["rate"] == pytest.approx(expected)
    assert report["cmc"][0]["rate"] == pytest.approx([plain_rate(small, keep, large, rank)[0] for rank in range(1, 21)])
    assert report["notes"] == ["1 of 4 probe identities have no gender and are in none of its groups."]
    assert report["suite"]["files"].keys() >= {"facescrub.json", "megaface_features_list.json_30_1", "actors.txt"}
    assert report["models"]["plain"]["train"]["model"] == "abc"


def test_insightface_mode_replaces_the_noisy_probe(small):
    report = small.run("noise.mode=insightface")
    assert report["suite"]["noise"] == {
        "mode": "insightface",
        "probes_removed": 0,
        "distractors_removed": 2,
        "probes_replaced": 1,
    }
    probe_PD = small.probe_PD.copy()
    noisy = small.probes.index("Bob_Ray/Bob_Ray_2.jpg")
    clean = [row for row in range(9) if small.probes[row].startswith("Bob") and row != noisy]
    probe_PD[noisy] = small.unit(probe_PD[clean].sum(axis=0, keepdims=True))[0]
    rate, pairs = plain_rate(small, range(9), [row for row in range(30) if row not in (2, 9)], 1, probe_PD)
    assert figures_of(report["rows"][0])["full"]["rate"] == pytest.approx(rate)
    assert report["suite"]["pairs"] == pairs == 14


def test_sets_are_averaged(small, write_list):
    write_list(small.root / "lists/megaface_features_list.json_5_2", small.distractors[20:25])
    report = small.run("noise.mode=raw", "suite.sizes=[5]")
    rates = [plain_rate(small, range(9), rows, 1)[0] for rows in (range(5), range(20, 25))]
    assert report["curves"][0]["rate"] == pytest.approx([np.mean(rates)])
    assert figures_of(report["rows"][0])["full"]["pairs"] == 14
    assert report["suite"]["sets"] == [1, 2]
    assert report["suite"]["distractors"] == 10


def plain_counts(small, probe_rows, lists, rank=1, probe_PD=None, distractor_GD=None):
    """Hits at `rank`, averaged over the lists, and pairs of each person by plain loops, as dicts."""
    probe_PD = (small.probe_PD if probe_PD is None else probe_PD).astype(float)
    distractor_GD = small.distractor_GD if distractor_GD is None else distractor_GD
    hits, pairs = {}, {}
    for mate, probe in itertools.permutations(probe_rows, 2):
        person = small.probes[probe].split("/")[0]
        if small.probes[mate].split("/")[0] == person:
            score = float(np.dot(probe_PD[mate], probe_PD[probe]))
            more = [sum(float(np.dot(probe_PD[probe], distractor_GD[g])) > score for g in rows) for rows in lists]
            hits[person] = hits.get(person, 0) + np.mean([count < rank for count in more])
            pairs[person] = pairs.get(person, 0) + 1
    return hits, pairs


def test_intervals_are_those_of_the_identities_of_each_group(small, write_list):
    write_list(small.root / "lists/megaface_features_list.json_5_2", small.distractors[20:25])
    report = small.run("noise.mode=raw", "suite.sizes=[5]", "interval.level=0.9")
    hits, pairs = plain_counts(small, range(9), (range(5), range(20, 25)))
    assert any(hit != int(hit) for hit in hits.values())  # averaged over the sets, a count is not always whole
    people = {"full": list(pairs), "male": ["Bob_Ray", "Cy_Doe_Jr."], "female": ["Ann_Lee"]}
    counts = ([[d.get(p, 0) if p in group else 0 for p in pairs] for group in people.values()] for d in (hits, pairs))
    expected = rate_intervals(ClusteredCounts.by_identity(*map(np.array, counts)), level=0.9)
    result = figures_of(report["rows"][0])
    for index, name in enumerate(people):
        limits = [result[name][key] for key in ("rate", "low", "high")]
        if name == "female":
            assert limits[1:] == [None, None]
        else:
            assert limits == pytest.approx([getattr(expected, key)[index] for key in ("rate_F", "low_F", "high_F")])
    assert report["interval"] == {
        "level": 0.9,
        "method": "jackknife over identities, Wilson limits of the effective trials",
    }


def test_a_group_without_a_miss_has_an_interval(small, write_store):
    random = np.random.default_rng(0)
    near_PD = np.ones((9, 6)) + random.normal(0, 0.01, (9, 6))
    write_store(small.root / "near", small.probes, {"direct": small.unit(near_PD)})
    write_store(small.root / "far", small.distractors, {"direct": small.unit(-np.ones((30, 6)))})
    models = {"apart": {"probes": str(small.root / "near"), "distractors": str(small.root / "far")}}
    report = small.run("noise.mode=raw", models=models)
    full = figures_of(report["rows"][0])["full"]
    assert (full["rate"], full["high"]) == (1, 1)
    # 6, 6 and 2 pairs, taken to end the same within a person: worth (sum n)^2 / sum n^2 independent ones.
    effective = 14**2 / (6**2 + 6**2 + 2**2)
    assert full["low"] == pytest.approx(effective / (effective + stats.t.ppf(0.975, effective - 1) ** 2))
    assert report["curves"][0]["low"] == [full["low"]] * 2


def test_an_empty_group_has_no_rate(small):
    report = small.run("shots.threshold=1.0")
    result = figures_of(report["rows"][0])
    assert result["zero"]["probes"] == 8
    for name in ("many", "few", "one"):
        assert {key: result[name][key] for key in ("rate", "low", "high", "pairs", "probes", "identities")} == {
            "rate": None,
            "low": None,
            "high": None,
            "pairs": 0,
            "probes": 0,
            "identities": 0,
        }
    assert result["female"]["rate"] is not None
    assert result["female"]["low"] is None  # one identity gives no interval


def test_no_pair_at_all(small, write_list):
    singles = [path for path in small.probes if path.endswith("_0.jpg")]
    write_list(small.root / "facescrub.json", singles)
    report = small.run()
    assert report["rows"][0]["figures"][0]["rate"] is None
    assert report["curves"][0]["rate"] == [None, None]


def test_every_kind_is_measured_as_what_it_is(small, second):
    models, arrays = second
    report = small.run("noise.mode=raw", models=models)
    assert [(row["model"], row["kind"]) for row in report["rows"]] == [
        ("plain", "direct"),
        ("second", "direct"),
        ("second", "meta"),
        ("second", "meta_unit"),
    ]
    for row in report["rows"][1:]:
        small.distractor_GD = arrays["distractors"][row["kind"]]
        rate, _ = plain_rate(small, range(9), range(30), 1, arrays["probes"][row["kind"]])
        assert figures_of(row)["full"]["rate"] == pytest.approx(rate)
    assert "second: no train store, so its shots are not measured." in report["notes"]
    assert "many" not in figures_of(report["rows"][1])


def test_models_share_the_reference_bands(small, second):
    models, _ = second
    for reference in ("plain", str(small.root / "train")):
        report = small.run(models=models, shots={"threshold": 0.3, "reference": reference})
        counts = [
            {name: figures_of(row)[name]["probes"] for name in ("many", "few", "one", "zero")} for row in report["rows"]
        ]
        assert all(count == counts[0] for count in counts)
        assert report["shots"]["reference"] == "plain, direct"
    q, t = small.probe_PD.astype(float), small.train_ND.astype(float)
    similar = [(row @ t.T > 0.3).sum() for path, row in zip(small.probes, q, strict=True) if "Ray_2" not in path]
    models["second"]["train"] = models["plain"]["train"]
    assert small.run(models=models)["shots"]["reference"] == "each model's own, direct"
    assert counts[0]["zero"] == sum(count == 0 for count in similar)
    assert counts[0]["many"] == sum(count >= 5 for count in similar)


def test_kinds_can_be_chosen_and_must_exist(small, second):
    models, _ = second
    del models["plain"]
    report = small.run("kinds=[meta]", models=models)
    assert [row["kind"] for row in report["rows"]] == ["meta"]
    with pytest.raises(
        UserError, match="model 'plain' has no 'meta' for both probes and distractors; they have direct in common"
    ):
        small.run("kinds=[meta]")


def test_a_rescaled_tree_gives_the_same_figures(small):
    for name, keys, rows_ND in (
        ("tree_probes", small.probes, small.probe_PD),
        ("tree_distractors", small.distractors, small.distractor_GD),
    ):
        for number, (key, row_D) in enumerate(zip(keys, rows_ND, strict=True)):
            write_feature(small.root / name / f"{key}_x.bin", (1 + number % 5) * row_D)
    models = small.config()["models"]
    models["tree"] = {name: str(small.root / f"tree_{name}") for name in ("probes", "distractors")} | {"algorithm": "x"}
    report = small.run(models=models)
    plain, tree = report["rows"]
    assert figures_of(tree)["full"] == figures_of(plain)["full"]
    assert report["cmc"][0]["rate"] == report["cmc"][1]["rate"]
