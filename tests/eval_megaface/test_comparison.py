"""Comparison of models: paired differences against plain loops, shot bands, shared probes, refusals, real faces."""

import itertools

import numpy as np
import pytest

from eval_megaface.config import MegafaceConfig
from eval_megaface.evaluate import evaluate_megaface
from facelt.config.loading import load_config
from facelt.errors import UserError
from facelt.stats.differences import RateDifferences
from facelt.stats.intervals import ClusteredCounts, rate_intervals

PEOPLE = {
    "full": ("Ann_Lee", "Bob_Ray", "Cy_Doe_Jr.", "Di_Fox"),
    "male": ("Bob_Ray", "Cy_Doe_Jr."),
    "female": ("Ann_Lee",),
}


def figures_of(row):
    return {figure["name"]: figure for figure in row["figures"]}


def plain_hits(small, rank, probe_PD, distractor_GD, probe_rows=range(9)):
    """Hits and pairs of each probe by plain loops over pairs and distractors: dicts by probe row."""
    hits, pairs = {}, {}
    for mate, probe in itertools.permutations(probe_rows, 2):
        if small.probes[mate].split("/")[0] == small.probes[probe].split("/")[0]:
            score = float(np.dot(probe_PD[mate].astype(float), probe_PD[probe].astype(float)))
            better = sum(float(np.dot(probe_PD[probe].astype(float), row_D)) > score for row_D in distractor_GD)
            hits[probe] = hits.get(probe, 0) + (better < rank)
            pairs[probe] = pairs.get(probe, 0) + 1
    return hits, pairs


def by_person(small, counts, probe_rows):
    """Sums of a dict of counts over the chosen probes of each person, as a list in the order of PEOPLE['full']."""
    return [
        sum(counts.get(row, 0) for row in probe_rows if small.probes[row].startswith(f"{person}/"))
        for person in PEOPLE["full"]
    ]


def test_differences_equal_plain_loops(small, second):
    models, arrays = second
    report = small.run("noise.mode=raw", "ranks=[1, 3]", models=models, compare={"reference": "plain"})
    section = report["comparison"]
    assert [(row["model"], row["kind"], row["rank"]) for row in section["rows"]] == [
        ("second", kind, rank) for kind in ("direct", "meta", "meta_unit") for rank in (1, 3)
    ]
    bands = {name: figure["probes"] for name, figure in figures_of(report["rows"][0]).items()}
    similar_P = (small.probe_PD.astype(float) @ small.train_ND.T.astype(float) > 0.3).sum(axis=1)
    chosen = {name: [row for row in range(9) if small.probes[row].split("/")[0] in PEOPLE[name]] for name in PEOPLE}
    limits = {"many": (5, 99), "few": (2, 4), "one": (1, 1), "zero": (0, 0)}
    chosen |= {name: [row for row in range(9) if low <= similar_P[row] <= high] for name, (low, high) in limits.items()}
    for row in section["rows"]:
        hits, pairs = plain_hits(small, row["rank"], small.probe_PD, small.distractor_GD)
        other = plain_hits(small, row["rank"], arrays["probes"][row["kind"]], arrays["distractors"][row["kind"]])[0]
        names = [figure["name"] for figure in row["figures"]]
        assert sorted(names) == sorted(chosen)
        hit_GI, other_GI, pair_GI = (
            np.array([by_person(small, counts, chosen[name]) for name in names], dtype=float)
            for counts in (hits, other, pairs)
        )
        counts = ClusteredCounts.by_identity(np.vstack([hit_GI, other_GI]), np.vstack([pair_GI] * 2))
        whole = [len(names) * model + names.index("full") for model in (0, 1) for _ in names]
        joint = rate_intervals(counts, level=0.95, pooled=counts.only(whole))
        for g, figure in enumerate(row["figures"]):
            assert len(chosen[figure["name"]]) == bands[figure["name"]]
            assert figure["pairs"] == pair_GI[g].sum()
            if not figure["pairs"]:
                assert {figure[key] for key in ("rate", "reference_rate", "difference", "low", "high", "p")} == {None}
                assert not figure["decided"]
                continue
            rate, reference_rate = (count_GI[g].sum() / pair_GI[g].sum() for count_GI in (other_GI, hit_GI))
            assert (figure["rate"], figure["reference_rate"]) == (rate, reference_rate)
            assert figure["difference"] == pytest.approx(rate - reference_rate)
            pair = RateDifferences.between(joint, [len(names) + g], [g])
            if figure["identities"] > 1:
                ends = [limit_K[0] for limit_K in pair.limits(0.95)]
                assert (figure["low"], figure["high"]) == pytest.approx(ends, rel=1e-9)
                assert (figure["low"] > 0 or figure["high"] < 0) == (figure["p"] < 0.05)
                excludes_0 = figure["adjusted_low"] > 0 or figure["adjusted_high"] < 0
                assert excludes_0 == (figure["adjusted_p"] < 0.05) == figure["decided"]
            else:
                assert (figure["low"], figure["high"]) == (None, None)
            assert figure["p"] == pytest.approx(pair.p_values()[0])
    # Holm: in ascending order each p is multiplied by the number of tests that remain, and none falls below another.
    tested = sorted(
        (
            (figure["p"], figure["adjusted_p"])
            for row in section["rows"]
            for figure in row["figures"]
            if figure["pairs"]
        ),
    )
    assert section["tests"] == len(tested)
    largest = 0.0
    for index, (p, adjusted) in enumerate(tested):
        largest = max(largest, min(1.0, p * (len(tested) - index)))
        assert adjusted == pytest.approx(largest)


@pytest.fixture
def crowd(small, write_store, write_list):
    """Models `good`, `poor` and `same` (equal to `poor`) on 24 people of four images."""
    random = np.random.default_rng(1)
    probes = [f"P{person:02}/P{person:02}_{number}.jpg" for person in range(24) for number in range(4)]
    write_list(small.root / "facescrub.json", probes)
    center_ID = random.standard_normal((24, 8))
    distractor_GD = small.unit(random.standard_normal((30, 8)))
    models = {}
    noise_PD = random.standard_normal((96, 8))
    for name, spread in (("good", 0.2), ("poor", 0.8), ("same", 0.8)):
        write_store(
            small.root / f"{name}_p", probes, {"direct": small.unit(center_ID.repeat(4, 0) + spread * noise_PD)}
        )
        write_store(small.root / f"{name}_d", small.distractors, {"direct": distractor_GD})
        models[name] = {"probes": str(small.root / f"{name}_p"), "distractors": str(small.root / f"{name}_d")}
    return models


def test_a_better_model_is_decided_and_an_equal_one_is_not(small, crowd):
    report = small.run(models=crowd, compare={"reference": "poor"})
    good, same = report["comparison"]["rows"]
    full = figures_of(good)["full"]
    assert full["decided"]
    assert full["low"] > 0
    assert full["adjusted_p"] < 0.05
    points = f"{100 * full['difference']:.1f}"
    ends = f"{100 * full['low']:.1f} to {100 * full['high']:.1f}"
    assert good["sentence"] == f"good direct is {points} points above poor direct at rank 1, 95% interval {ends}"
    full = figures_of(same)["full"]
    assert (full["difference"], full["p"], full["decided"]) == (0, 1, False)
    assert full["low"] <= 0 <= full["high"]
    assert same["sentence"].startswith("same direct is equal to poor direct at rank 1, 95% interval ")
    assert same["sentence"].endswith(": undecided at 24 identities")
    (worse, _) = small.run(models=crowd, compare={"reference": "good"})["comparison"]["rows"]
    assert worse["sentence"].startswith(f"poor direct is {points} points below good direct at rank 1")


def test_the_level_of_the_intervals_decides(small, crowd):
    models = {name: crowd[name] for name in ("good", "poor")}
    # The smallest p that 24 identities can reach lies between 1e-12 and 1e-7.
    for level, decided in ((0.95, True), (1 - 1e-12, False)):
        report = small.run(f"interval.level={level}", models=models, compare={"reference": "poor"})
        (row,) = report["comparison"]["rows"]
        full = figures_of(row)["full"]
        assert 1e-12 < full["smallest_p"] < 1e-7
        assert full["smallest_p"] <= full["p"] == full["adjusted_p"]
        assert (full["adjusted_low"] > 0) == full["decided"] == decided
        assert (": undecidable with 24 identities (the smallest adjusted p" in row["sentence"]) != decided


def test_shot_columns_have_the_bands_of_the_reference(small, second, write_store):
    models, _ = second
    other_ND = small.unit(np.random.default_rng(2).standard_normal((8, 6)))
    write_store(small.root / "second_train", [str(row) for row in range(8)], {"direct": other_ND})
    models["second"]["train"] = str(small.root / "second_train")

    def counts(figures):
        return {figure["name"]: figure["pairs"] for figure in figures if figure["group"] == "shots"}

    own = small.run(models=models, compare={"reference": "plain"})
    of_model = {row["model"]: counts(row["figures"]) for row in own["rows"]}
    assert of_model["plain"] != of_model["second"]
    assert counts(own["comparison"]["rows"][0]["figures"]) == of_model["plain"]
    assert own["comparison"]["shots"] == "plain"
    shared = small.run("shots.reference=second", models=models, compare={"reference": "plain"})
    assert counts(shared["comparison"]["rows"][0]["figures"]) == counts(shared["rows"][0]["figures"])
    assert counts(shared["comparison"]["rows"][0]["figures"]) == of_model["second"]
    assert shared["comparison"]["shots"] == "second"
    del models["plain"]["train"]
    without = small.run(models=models, compare={"reference": "plain"})["comparison"]
    assert without["shots"] is None
    assert not counts(without["rows"][0]["figures"])


def test_other_kinds_of_the_reference_are_compared_too(small, second):
    models, _ = second
    report = small.run(models=models, compare={"reference": "second", "kind": "meta"})
    names = [(row["model"], row["kind"]) for row in report["comparison"]["rows"]]
    assert names == [("plain", "direct"), ("second", "direct"), ("second", "meta_unit")]
    rates = {(row["model"], row["kind"]): figures_of(row)["full"]["rate"] for row in report["rows"]}
    for row in report["comparison"]["rows"]:
        full = figures_of(row)["full"]
        assert (full["rate"], full["reference_rate"]) == (rates[row["model"], row["kind"]], rates["second", "meta"])


def test_stores_over_different_probes_are_refused_and_left_out_for_both_if_allowed(small, second, write_store):
    models, arrays = second
    lacking = small.probes[4]
    kept = [row for row in range(9) if row != 4]
    write_store(
        small.root / "fewer",
        [small.probes[row] for row in kept],
        {kind: value_PD[kept] for kind, value_PD in arrays["probes"].items()},
    )
    models["second"]["probes"] = str(small.root / "fewer")
    with pytest.raises(
        UserError, match=rf"fewer: direct of 1 of 9 listed images cannot be used \(1 missing: '{lacking}'\)"
    ):
        small.run("noise.mode=raw", models=models, compare={"reference": "plain"})
    assert not (small.root / "out").exists()
    report = small.run("noise.mode=raw", "allow_missing=1", models=models, compare={"reference": "plain"})
    full = figures_of(report["comparison"]["rows"][0])["full"]
    hits, pairs = plain_hits(small, 1, small.probe_PD, small.distractor_GD, kept)
    other, _ = plain_hits(small, 1, arrays["probes"]["direct"], arrays["distractors"]["direct"], kept)
    assert full["pairs"] == sum(pairs.values()) == 10
    assert full["reference_rate"] == pytest.approx(sum(hits.values()) / 10)
    assert full["rate"] == pytest.approx(sum(other.values()) / 10)


def test_a_suite_without_pairs_has_no_difference(small, second, write_list):
    models, _ = second
    write_list(small.root / "facescrub.json", [path for path in small.probes if path.endswith("_0.jpg")])
    section = small.run(models=models, compare={"reference": "plain"})["comparison"]
    assert section["tests"] == 0
    assert section["rows"][0]["sentence"] == (
        "second direct cannot be compared with plain direct at rank 1: there are no pairs"
    )


@pytest.mark.parametrize(
    ("compare", "changes", "match"),
    [
        ({"reference": "third"}, [], r"compare\.reference: 'third' is no model; allowed: plain, second"),
        ({"reference": "secnd"}, [], r"'secnd' is no model; allowed: plain, second; did you mean 'second'\?"),
        ({}, [], r"compare\.reference"),
        ({"reference": "plain", "level": 0.9}, [], r"compare\.level: unknown key; allowed: kind, reference"),
        ({"reference": "plain", "kind": "deep"}, [], r"compare\.kind"),
        (
            {"reference": "plain", "kind": "meta"},
            [],
            r"compare\.kind: model 'plain' has no 'meta' among its measured kinds, which are direct$",
        ),
        (
            {"reference": "second", "kind": "meta"},
            ["kinds=[direct]"],
            r"compare\.kind: model 'second' has no 'meta' among its measured kinds, which are direct$",
        ),
        ({"reference": "plain", "permutations": 5}, [], r"compare\.permutations: unknown key"),
    ],
)
def test_mistakes_are_refused_before_any_search(small, second, compare, changes, match):
    models, _ = second
    with pytest.raises(UserError, match=match) as caught:
        small.run(*changes, models=models, compare=compare)
    assert "\n" not in str(caught.value)
    assert not (small.root / "out").exists()


def test_a_single_model_has_nothing_to_compare(small):
    with pytest.raises(UserError, match=r"compare\.reference: nothing is measured but 'plain', direct"):
        small.run(compare={"reference": "plain"})


@pytest.mark.parametrize("name", ["megaface", "demo_megaface", "faces_small_megaface", "faces_power_megaface"])
def test_shipped_configurations_compare_with_plain_long(root, name):
    config = load_config(root / f"configs/{name}.yaml", MegafaceConfig)
    shortest = "plain_long" if name == "demo_megaface" else "plain"
    assert list(config.models) == list(dict.fromkeys([shortest, "plain_long", "oltr"]))
    assert (config.compare.reference, config.compare.kind) == ("plain_long", "direct")
    assert config.shots_reference_model("oltr") == shortest


def test_the_larger_real_suite_decides_what_half_an_embedding_costs(root, real_data, write_store, tmp_path):
    folder = real_data / "faces_power"
    arrays = np.load(folder / "embeddings.npz")
    models = {}
    for name, values in (("whole", 128), ("half", 64)):
        for part, listed in (("facescrub", "probes"), ("megaface", "distractors")):
            value_ND = arrays[part].astype(np.float32)[:, :values]
            value_ND /= np.linalg.norm(value_ND, axis=1, keepdims=True)
            store = tmp_path / f"{name}_{listed}"
            write_store(store, (folder / f"{part}_lst").read_text().split(), {"direct": value_ND})
            models.setdefault(name, {})[listed] = store
    shipped = load_config(root / "configs/faces_power_megaface.yaml", MegafaceConfig)
    suite = shipped.suite.model_dump() | {"root": folder}
    values = {"out": tmp_path / "out", "suite": suite, "models": models, "compare": {"reference": "whole"}}
    report = evaluate_megaface(MegafaceConfig.model_validate(values)).json_values()
    counts = {key: report["suite"][key] for key in ("probes", "identities", "pairs", "distractors")}
    assert counts == {"probes": 2210, "identities": 221, "pairs": 221 * 90, "distractors": 3504}
    whole = figures_of(report["rows"][0])
    rates = [round(whole[name]["rate"], 4) for name in ("full", "male", "female")]
    assert rates == [0.9705, 0.9589, 0.9722]
    (row,) = report["comparison"]["rows"]
    full = figures_of(row)["full"]
    assert full["decided"]
    assert -0.2 < full["low"] < full["difference"] < full["high"] < 0
    assert row["sentence"].startswith("half direct is ")
    assert " points below whole direct at rank 1, 95% interval -" in row["sentence"]
