"""Open-set identification against independent results, by similarity and by reachability, with its conditions."""

import numpy as np
import pytest

from eval_megaface.config import MegafaceConfig
from eval_megaface.evaluate import evaluate_megaface
from facelt.errors import UserError
from facelt.identification.open_set import open_set_searches
from facelt.search.search import Search
from facelt.store.writer import StoreWriter


def test_real_embeddings(real_config):
    report = evaluate_megaface(
        MegafaceConfig.model_validate(real_config | {"open_set": {"rank": 1, "seed": 0}})
    ).json_values()
    section = report["open_set"]
    assert (section["rank"], section["seed"], section["distractors"]) == (1, 0, 6732)
    assert section["enrolment"].startswith("one image of each enrolled identity, drawn with the seed")
    assert sum(half["enrolled"] for half in section["halves"]) == 14
    for half in section["halves"]:
        assert half["gallery"] == 6732 + half["enrolled"]
        assert half["enrolled"] + half["mated"] + half["nonmated"] == 607
    (entry,) = section["rates"]
    assert (entry["model"], entry["kind"], entry["score"]) == ("mobile", "direct", "similarity")
    tenth, hundredth, nist, thousandth = entry["points"]
    # From the whole matrix of scores, by a separate program.
    assert (tenth["wanted"], tenth["fnir"]) == (0.1, pytest.approx(0.1781, abs=5e-5))
    assert (hundredth["wanted"], hundredth["fnir"]) == (0.01, pytest.approx(0.2472, abs=5e-5))
    assert (thousandth["wanted"], thousandth["fnir"], thousandth["fpir"]) == (0.001, None, None)
    assert (nist["wanted"], nist["fnir"], nist["reason"].partition(";")[0]) == (
        *(0.003, None),
        "a rate of 0.003 needs 334 non-mated searches",
    )
    assert "needs 1,000 non-mated searches; half 1 has 292" in thousandth["reason"]
    assert thousandth["halves"] == []
    for point in (tenth, hundredth):
        # Some 300 searches a half do not suffice for 30 false positives, at 10% just not.
        assert not point["supported"]
        for half, searches in zip(point["halves"], section["halves"], strict=True):
            assert half["fpir"] <= point["wanted"]
            assert half["false_positives"] == pytest.approx(half["fpir"] * searches["nonmated"])
        assert point["fnir"] == np.mean([half["fnir"] for half in point["halves"]])
    assert section["smallest_fpir"] == 30 / 292
    assert entry["curve"]["fpir"] == sorted(entry["curve"]["fpir"])
    assert report["verification"] is None


def plain_by_reachability(half, probe_PD, distractor_GD, reachability_P, identity_P, wanted):
    """FNIR of one half from its whole matrix of candidates."""
    candidate_GD = np.concatenate([probe_PD[half.enrolled_E], distractor_GD]).astype(np.float64)
    score_PG = probe_PD.astype(np.float64) @ candidate_GD.T
    allowed = int(wanted * len(half.nonmated_N))
    too_many = np.sort(reachability_P[half.nonmated_N])[::-1][allowed]
    hits = 0
    for probe in half.mated_M:
        (mate,) = np.flatnonzero(identity_P[half.enrolled_E] == identity_P[probe])
        hits += bool(score_PG[probe, mate] >= score_PG[probe].max() and reachability_P[probe] > too_many)
    return 1 - hits / len(half.mated_M)


def add_reachability(folder, keys, value_ND, reachability_N):
    writer = StoreWriter(
        folder, keys, ["x"] * len(keys), {"direct": value_ND.shape[1]}, {}, dtype="float32", reachability=True
    )
    writer.write(0, {"direct": value_ND}, reachability_N.astype(np.float32))
    writer.finish()


def test_reachability_where_the_store_has_it(real_config, real_data, tmp_path):
    arrays = np.load(real_data / "faces/embeddings.npz")
    paths = arrays["facescrub_paths"].tolist()
    probe_PD, distractor_GD = arrays["facescrub"].astype(np.float32), arrays["megaface"].astype(np.float32)
    reachability_P = np.random.default_rng(3).permutation(len(paths)) / 64
    add_reachability(tmp_path / "familiar", paths, probe_PD, reachability_P)
    real_config["models"]["mobile"] |= {"probes": tmp_path / "familiar"}
    changes = {"noise": {"mode": "raw"}, "open_set": {"seed": 4}}
    section = evaluate_megaface(MegafaceConfig.model_validate(real_config | changes)).json_values()["open_set"]
    assert [entry["score"] for entry in section["rates"]] == ["similarity", "reachability"]
    _, identity_P = np.unique([path.split("/")[0] for path in paths], return_inverse=True)
    halves = open_set_searches(probe_PD, identity_P, distractor_GD, seed=4, cosine=True).halves
    for point in section["rates"][1]["points"][:2]:
        plain = [
            plain_by_reachability(half, probe_PD, distractor_GD, reachability_P, identity_P, point["wanted"])
            for half in halves
        ]
        assert [half["fnir"] for half in point["halves"]] == pytest.approx(plain)
        assert point["fnir"] == pytest.approx(np.mean(plain))


@pytest.fixture
def familiar(small):
    """Store of the small suite's probes with reachability, in another order than the list."""

    def write(reachability_P):
        turn = np.roll(np.arange(9), 2)
        add_reachability(small.root / "familiar", [small.probes[row] for row in turn], small.probe_PD[turn],
                         np.asarray(reachability_P, dtype=float)[turn])  # fmt: skip
        models = small.config()["models"]
        models["plain"]["probes"] = str(small.root / "familiar")
        return models

    return write


def test_a_reachability_that_is_not_finite_is_refused_before_the_search(small, familiar, monkeypatch):
    monkeypatch.setattr(Search, "top_k", lambda *_, **__: pytest.fail("searched"))
    monkeypatch.setattr(Search, "count_above", lambda *_, **__: pytest.fail("searched"))
    models = familiar(np.arange(9))
    values_N = np.lib.format.open_memmap(small.root / "familiar/reachability.npy", mode="r+")
    values_N[5] = np.inf
    values_N.flush()
    with pytest.raises(UserError, match=r"familiar: the reachability of 'Bob_Ray/Bob_Ray_0.jpg' is not finite"):
        small.run("open_set={}", models=models)


def test_replaced_probes_have_no_reachability(small, familiar):
    report = small.run("open_set={}", "noise.mode=insightface", models=familiar(np.arange(9)))
    assert [entry["score"] for entry in report["open_set"]["rates"]] == ["similarity"]
    assert (
        "plain: replaced probes have no reachability, so open-set search by reachability is not measured."
        in report["notes"]
    )


def test_too_few_searches_have_no_figure(small):
    section = small.run("open_set={}")["open_set"]
    for point in section["rates"][0]["points"]:
        assert (point["fnir"], point["fpir"], point["halves"]) == (None, None, [])
        assert "non-mated searches" in point["reason"]


def test_a_single_identity_cannot_be_a_stranger(small, write_list):
    write_list(small.root / "facescrub.json", small.probes[:3])
    section = small.run("open_set={}")["open_set"]
    assert section["smallest_fpir"] is None
    assert section["rates"][0]["curve"] == {"fpir": [], "fnir": []}
    assert section["rates"][0]["points"][0]["reason"] == "half 1 has 2 mated and 0 non-mated searches"


@pytest.fixture
def searches(monkeypatch):
    """Records the k of each search."""
    calls, plain = [], Search.top_k

    def noted(self, query_PD, database_GD, k, prefixes, **named):
        calls.append(k)
        return plain(self, query_PD, database_GD, k, prefixes, **named)

    monkeypatch.setattr(Search, "top_k", noted)
    return calls


def test_searches_by_the_runs_engine_and_never_twice(small, searches):
    assert small.run()["open_set"] is None
    assert searches == [20]
    first = small.run("open_set={}")
    assert small.run("open_set={}")["open_set"] == first["open_set"]
    assert searches == [20, 1]
    second = small.run("open_set.seed=1", "open_set.rank=3")["open_set"]
    assert (second["seed"], second["rank"]) == (1, 3)
    assert searches == [20, 1, 3]


@pytest.mark.parametrize(
    ("override", "match"), [("open_set.rank=0", "open_set.rank"), ("open_set.sed=1", "did you mean 'seed'")]
)
def test_a_wrong_key_is_named(small, override, match):
    with pytest.raises(UserError, match=match):
        small.run(override)
