"""Whole audits: figures of the report against plain counting, and input errors."""

import itertools
import json
import re

import numpy as np
import pytest
import yaml

from facelt.audit.inputs import open_inputs
from facelt.audit.measure import search_all
from facelt.audit.run import run_audit
from facelt.errors import UserError
from tests.feature_files import write_feature


def run(config):
    """The JSON values of an audit's report."""
    return run_audit(config).report.json_values()


def rates(report, grouping=0):
    return {" & ".join(group["group"]): group["rates"] for group in report["groupings"][grouping]["groups"]}


def test_pair_errors_by_group_equal_a_plain_count(faces, settings):
    report = run(settings())
    threshold = report["thresholds"]["pairs"]
    score = faces.value_ND.astype(np.float64) @ faces.value_ND.astype(np.float64).T
    groups = ["a" if int(person[-2:]) % 2 else "b" for person in faces.identities]
    count = {}
    for left, right in itertools.combinations(range(64), 2):
        mated = faces.identities[left] == faces.identities[right]
        match = score[left, right] >= threshold["score"]
        for key in (("all", "all"), tuple(sorted((groups[left], groups[right])))):
            cell = count.setdefault((*key, mated), [0, 0])
            cell[0] += match != mated
            cell[1] += 1
    for name, result in rates(report).items():
        assert [result["fmr"]["events"], result["fmr"]["trials"]] == count[name, name, False]
        assert [result["fnmr"]["events"], result["fnmr"]["trials"]] == count[name, name, True]
    assert [report["overall"]["fmr"]["events"], threshold["trials"]] == count["all", "all", False]
    across = {(*row["left"], *row["right"]): [row["events"], row["trials"]] for row in report["groupings"][0]["across"]}
    assert across["a", "b"] == count["a", "b", False]
    assert threshold["rate"] <= 0.02
    # Any lower threshold has too many false matches.
    non_mated = score[np.triu(np.array(faces.identities)[:, None] != np.array(faces.identities), 1)]
    assert (non_mated >= threshold["score"] - 1e-4).mean() > 0.019


def test_a_constructed_gap_is_detected(settings):
    conditions = ["gap(fnmr) > 0.05", "gap(fnmr, by=group) > 0.99", "gap(fnmr).high > 0.5", "worst(rank1).low < 0.2"]
    report = run(settings(fail_if=conditions))
    result = {row["metric"]: row for row in report["groupings"][0]["contrasts"]}
    assert (result["fnmr"]["first"], result["fnmr"]["second"]) == (["b"], ["a"])
    assert result["fnmr"]["p"] < 0.05
    assert result["fnmr"]["low"] > 0
    assert [condition["state"] for condition in report["conditions"][:2]] == ["fails", "holds"]
    gap = next(
        row for row in report["groupings"][0]["disparities"] if (row["figure"], row["metric"]) == ("gap", "fnmr")
    )
    assert gap["value"] == pytest.approx(result["fnmr"]["difference"])
    # Of two groups, the gap has the limits of their difference.
    assert (gap["low"], gap["high"]) == (result["fnmr"]["low"], result["fnmr"]["high"])
    worst = next(
        row for row in report["groupings"][0]["disparities"] if (row["figure"], row["metric"]) == ("worst", "rank1")
    )
    lowest = min(group["rank1"]["rate"] for group in rates(report).values())
    assert (worst["value"], worst["note"]) == (lowest, "in b")
    assert worst["low"] < rates(report)["b"]["rank1"]["low"] < worst["value"] < worst["high"]
    assert report["conditions"][2]["state"] == ("fails" if gap["high"] > 0.5 else "holds")
    assert report["conditions"][3]["state"] == ("fails" if worst["low"] < 0.2 else "holds")


def test_a_group_has_one_interval_in_all_tables_and_its_ratios_are_bounds_without_errors(faces, settings):
    score = faces.value_ND.astype(np.float64) @ faces.value_ND.astype(np.float64).T
    people = np.array(faces.identities)
    is_a = np.array([int(person[-2:]) % 2 == 1 for person in people])
    highest = [score[np.ix_(own, own)][people[own][:, None] != people[own]].max() for own in (is_a, ~is_a)]
    # At this score nobody of one group is mistaken for another of it.
    report = run(
        settings(threshold={"score": float(np.mean(highest))}, by=[["group"], ["group", "age"]], bins={"age": [40]})
    )
    for grouping in report["groupings"]:
        across = {tuple(row["left"]): row for row in grouping["across"] if row["left"] == row["right"]}
        for group in grouping["groups"]:
            row = across[tuple(group["group"])]
            fmr = group["rates"]["fmr"]
            assert [row[key] for key in ("rate", "low", "high")] == [fmr[key] for key in ("rate", "low", "high")]
    first = report["groupings"][0]
    bounds = {(row["figure"], row["metric"]) for row in first["disparities"] if row["at_least"]}
    zero = {metric for group in first["groups"] for metric, rate in group["rates"].items() if rate["rate"] == 0}
    some = {metric for group in first["groups"] for metric, rate in group["rates"].items() if rate["rate"]}
    one_sided = (zero & some) - {"rank1"}
    assert "fmr" in one_sided
    for metric in one_sided:
        assert {(figure, metric) for figure in ("ratio", "max_over_geometric_mean", "gini")} <= bounds
    assert {figure for figure, _ in bounds} <= {"ratio", "max_over_geometric_mean", "gini", "inequity", "garbe"}


@pytest.mark.filterwarnings("error")
def test_intersections_bins_and_small_groups(settings):
    report = run(settings(by=[["group"], ["group", "age"]], bins={"age": [30, 60]}, min_identities=4))
    assert [grouping["by"] for grouping in report["groupings"]] == [["group"], ["group", "age"]]
    groups = {" & ".join(row["group"]): row for row in report["groupings"][1]["groups"]}
    # Ages are 20, 23, 26, ... 65; the group b begins.
    sizes = {name: (row["identities"], row["small"]) for name, row in groups.items()}
    expected = {"a & 30-<60": 5, "b & 30-<60": 5, "a & <30": 2, "b & <30": 2, "a & >=60": 1, "b & >=60": 1}
    assert sizes == {name: (number, number < 4) for name, number in expected.items()}
    compared = {name for row in report["groupings"][1]["contrasts"] for name in (row["first"][1], row["second"][1])}
    assert compared == {"30-<60"}


def test_failures_to_enrol_are_counted_by_group_or_refused(faces, settings):
    value_ND = faces.value_ND.copy()
    # A store refuses such rows when it is written, so they are put there afterwards.
    store = faces.store("broken", value_ND)
    array = np.load(store / "direct.npy", mmap_mode="r+")
    array[0], array[5, 3], array[6] = 0, np.nan, 0
    array.flush()
    embeddings = {"path": str(store)}
    with pytest.raises(UserError, match=r"3 of 64 images have no usable embedding, allowed are 2 .*Person_00/0.jpg"):
        run_audit(settings(embeddings=embeddings, allow_missing=2))
    report = run(settings(embeddings=embeddings, allow_missing=3))
    assert {row["group"][0]: row["failures"] for row in report["groupings"][0]["groups"]} == {"a": 2, "b": 1}
    assert report["subject"]["enrolled"] == 61
    assert report["subject"]["failed"][0] == "Person_00/0.jpg: its embedding has length zero"
    assert report["overall"]["fnmr"]["trials"] == 14 * 6 + 3 + 1


def test_a_tree_and_a_store_give_the_same_figures(faces, settings, tmp_path):
    tree, listed = tmp_path / "tree", tmp_path / "list.json"
    for key, row_D in zip(faces.keys, faces.value_ND, strict=True):
        person, name = key.split("/")
        write_feature(tree / person / f"{name}_toy.bin", row_D)
    listed.write_text(json.dumps({"path": faces.keys}))
    gallery = {"path": str(faces.gallery())}
    embeddings = {"path": str(tree), "algorithm": "toy", "list": str(listed)}
    of_tree = run(settings(embeddings=embeddings, gallery=gallery))
    of_store = run(settings(gallery=gallery))
    assert of_tree["groupings"] == of_store["groupings"]
    (tree / "Person_00/0.jpg_toy.bin").unlink()
    with pytest.raises(UserError, match=r"1 of 64 images .* such as Person_00/0.jpg: no such file"):
        run_audit(settings(embeddings=embeddings))
    report = run(settings(embeddings=embeddings, allow_missing=1))
    assert report["subject"]["failures"] == 1
    with pytest.raises(UserError, match="set algorithm and list"):
        run_audit(settings(embeddings={"path": str(tree)}))


def test_arrays_and_a_table_of_rows_give_the_figures_of_stores(faces, settings, tmp_path):
    other_ND = faces.value_ND[:, ::-1].copy()
    gallery, other_gallery = faces.gallery(), faces.gallery_GD[:, ::-1]
    np.save(tmp_path / "gallery.npy", other_gallery)
    of_stores = run(
        settings(
            gallery={"path": str(gallery)},
            against={"path": str(faces.store("other", other_ND))},
            against_gallery={"path": str(tmp_path / "gallery.npy")},
        )
    )
    np.savez(tmp_path / "probes.npz", direct=faces.value_ND, ignored=np.ones(3))
    np.save(tmp_path / "probes.npy", 5.0 * faces.value_ND)
    np.save(tmp_path / "other.npy", other_ND)
    np.save(tmp_path / "strangers.npy", faces.gallery_GD)
    table = tmp_path / "rows.csv"
    rows = zip(faces.keys, faces.identities, strict=True)
    table.write_text("key,identity\n" + "".join(f"{key},{identity}\n" for key, identity in rows))
    for name in ("probes.npz", "probes.npy"):
        of_arrays = run(
            settings(
                embeddings={"path": str(tmp_path / name), "items": str(table)},
                gallery={"path": str(tmp_path / "strangers.npy")},
                against={"path": str(tmp_path / "other.npy")},
                against_gallery={"path": str(tmp_path / "gallery.npy")},
            )
        )
        assert rates(of_arrays) == rates(of_stores)
        assert of_arrays["against"]["groupings"] == of_stores["against"]["groupings"]
        assert str(table) in of_arrays["subject"]["files"]
    with pytest.raises(UserError, match=r"probes\.npy: the rows of an array have no names; list them"):
        run_audit(settings(embeddings={"path": str(tmp_path / "probes.npy")}))


def test_scores_give_the_same_match_errors_as_embeddings(faces, settings, tmp_path):
    whole = run(settings())
    score = faces.value_ND.astype(np.float64) @ faces.value_ND.astype(np.float64).T
    people = faces.identities
    lines = [
        f"{people[left]},{people[right]},{float(score[left, right])},{int(people[left] == people[right])}"
        for left, right in itertools.combinations(range(64), 2)
    ]
    path = tmp_path / "scores.csv"
    path.write_text("\n".join(["id1,id2,score,label", *lines]))
    report = run(settings(embeddings=None, scores=str(path)))
    for metric in ("fmr", "fnmr"):
        assert {name: metrics[metric]["rate"] for name, metrics in rates(report).items()} == pytest.approx(
            {name: metrics[metric]["rate"] for name, metrics in rates(whole).items()}, abs=2e-3
        )
    assert set(report["overall"]) == {"fmr", "fnmr"}
    assert "no search was made" in report["notes"][-1]
    with pytest.raises(UserError, match="a scores file has no searches"):
        run_audit(settings(embeddings=None, scores=str(path), threshold={"fpir": 0.1}))


def test_fnir_is_listed_at_several_fpirs(faces, settings):
    inputs = open_inputs(settings(gallery={"path": str(faces.gallery())}))
    halves = search_all(inputs.audited.embeddings, inputs.gallery, 0).open_set.halves
    points = run(settings(gallery={"path": str(faces.gallery())}))["open_set"]
    assert [point["wanted"] for point in points] == [0.1, 0.01, 0.003, 0.001]
    threshold_2 = [sorted(half.best_score_N, reverse=True)[len(half.best_score_N) // 10] for half in halves]
    missed = [
        np.mean((half.mate_rank_M > 1) | (half.mate_score_M <= threshold))
        for half, threshold in zip(halves, threshold_2, strict=True)
    ]
    assert points[0]["fnir"] == pytest.approx(np.mean(missed))
    assert [part["threshold"] for part in points[0]["halves"]] == pytest.approx(threshold_2)
    assert points[2]["reason"].startswith("a rate of 0.003 needs 334 non-mated searches; half 1 has")


def test_scores_and_times_are_listed_by_group(faces, settings):
    rows = [f"{key},{0.5 + (index % 3)}" for index, key in enumerate(faces.keys) if index % 2]
    times = faces.attributes("key,seconds\n" + "\n".join(rows) + "\n", "times.csv")
    tables = [str(faces.attributes()), str(times)]
    report = run(settings(attributes={"tables": tables}, by=[["group"]]))
    score = faces.value_ND.astype(np.float64) @ faces.value_ND.astype(np.float64).T
    people = np.array(faces.identities)
    is_mated, is_pair = people[:, None] == people, np.triu(np.ones((64, 64), dtype=bool), 1)
    in_a = np.array([int(person[-2:]) % 2 == 1 for person in people])
    seconds = np.array([0.5 + (index % 3) if index % 2 else np.nan for index in range(64)])
    for group in report["groupings"][0]["groups"]:
        member = in_a if group["group"] == ["a"] else ~in_a
        for name, kind in (("mated", is_mated), ("non_mated", ~is_mated)):
            inside = score[is_pair & kind & member[:, None] & member]
            assert group["scores"][name]["mean"] == pytest.approx(inside.mean(), abs=2e-5)
            shift = inside.mean() - score[is_pair & kind].mean()
            assert group["scores"][name]["shift"] == pytest.approx(shift, abs=4e-5)
            assert report["scores"][name]["shift"] == 0
        assert group["seconds"]["images"] == 16
        assert group["seconds"]["mean"] == pytest.approx(np.nanmean(seconds[member]))
    assert report["seconds"]["median"] == np.nanmedian(seconds)


def test_images_that_only_a_table_lists_are_failures_on_demand(faces, settings):
    absent = ["Person_00/x.jpg", "Person_01/y.jpg", "Person_01/z.jpg"]
    lines = [
        f"{key},{identity},{20 + index % 5}"
        for index, (key, identity) in enumerate(zip(faces.keys, faces.identities, strict=True))
    ]
    lines += [f"{key},{key.partition('/')[0]},30" for key in absent]
    images = faces.attributes("key,identity,age\n" + "\n".join(lines) + "\n", "images.csv")
    tables = [
        str(
            faces.attributes(
                "identity,group\n" + "\n".join(f"Person_{n:02d},{'ba'[n % 2]}" for n in range(16)), "p.csv"
            )
        )
    ]
    tables.append(str(images))
    ignored = run(settings(attributes={"tables": tables}))
    assert f"{images} lists 3 images without an embedding, which are ignored" in " ".join(ignored["notes"])
    with pytest.raises(UserError, match="3 of 67 images have no usable embedding, allowed are 0"):
        run_audit(settings(attributes={"tables": tables, "absent": "failure"}))
    report = run(settings(attributes={"tables": tables, "absent": "failure"}, allow_missing=3))
    groups = {row["group"][0]: row for row in report["groupings"][0]["groups"]}
    assert [(groups[name]["failures"], groups[name]["images"]) for name in "ab"] == [(2, 34), (1, 33)]
    assert groups["a"]["failure_rate"] == pytest.approx(2 / 34)
    assert rates(report) == rates(ignored)
    with pytest.raises(ValueError, match="requires embeddings without list, noises and against"):
        settings(attributes={"absent": "failure"}, against={"path": "other"})


def test_distances_give_the_error_rates_of_a_plain_count(faces, settings, tmp_path):
    pairs = list(itertools.combinations(range(64), 2))
    distance = np.linalg.norm(faces.value_ND[:, None] - faces.value_ND, axis=-1).round(3)
    people = faces.identities
    lines = [f"{people[a]},{people[b]},{distance[a, b]:.3f},{int(people[a] == people[b])}" for a, b in pairs]
    path = tmp_path / "distances.csv"
    path.write_text("\n".join(["id1,id2,score,label", *lines]))
    limit = 0.9004
    of_file = {"embeddings": None, "scores": str(path), "threshold": {"score": limit}}
    report = run(settings(**of_file, higher_is="different"))
    missed = sum(distance[a, b] > limit for a, b in pairs if people[a] == people[b])
    matched = sum(distance[a, b] <= limit for a, b in pairs if people[a] != people[b])
    assert (report["overall"]["fnmr"]["events"], report["overall"]["fmr"]["events"]) == (missed, matched)
    assert missed
    assert matched
    assert report["thresholds"]["pairs"]["score"] == -limit
    assert report["subject"]["score"] == "minus the score of the file, a distance; larger means more similar"
    with pytest.raises(UserError, match="--higher-is different"):
        run_audit(settings(**of_file))
    assert "check which way the scores run" in " ".join(run(settings(**of_file, higher_is="same"))["notes"])
    with pytest.raises(ValueError, match="higher_is requires scores"):
        settings(higher_is="same")


def test_a_threshold_is_given_or_set_on_another_set(faces, settings):
    given = run(settings(threshold={"score": 0.5}))["thresholds"]
    assert [(use, threshold["score"], threshold["kind"]) for use, threshold in given.items()] == [
        ("pairs", 0.5, "given"),
        ("searches", 0.5, "given"),
    ]
    other = faces.store("other", faces.value_ND[::-1].copy())
    from_store = run(settings(threshold={"store": str(other), "fmr": 0.02}))["thresholds"]
    assert from_store["pairs"]["where"] == str(other)
    assert from_store["searches"] == from_store["pairs"]
    from_audited = run(settings(embeddings={"path": str(other)}, threshold={"fmr": 0.02}))["thresholds"]
    assert from_store["pairs"]["score"] == from_audited["pairs"]["score"]
    with pytest.raises(UserError, match=r"threshold\.fmr: no threshold for an FMR of 1e-06 on the audited set"):
        run_audit(settings(threshold={"fmr": 1e-6}))
    with pytest.raises(UserError, match=r"threshold\.fpir: .* needs 1,000 non-mated searches, there are 64"):
        run_audit(settings(threshold={"fpir": 1e-3}))


def test_two_models_are_compared_on_the_same_images(faces, settings):
    random = np.random.default_rng(0)
    worse_ND = faces.value_ND + random.normal(size=faces.value_ND.shape) * 0.15
    worse_ND = (worse_ND / np.linalg.norm(worse_ND, axis=1, keepdims=True)).astype(np.float32)
    other = faces.store("worse", worse_ND)
    report = run(settings(against={"path": str(other)}))
    alone = run(settings(embeddings={"path": str(other)}))
    (grouping,) = report["against"]["groupings"]
    for row in grouping["rows"]:
        name = row["group"][0]
        assert row["rate"] == pytest.approx(rates(report)[name]["rank1"]["rate"])
        assert row["other_rate"] == pytest.approx(rates(alone)[name]["rank1"]["rate"])
        assert row["difference"] == pytest.approx(row["other_rate"] - row["rate"])
        assert row["low"] <= row["difference"] <= row["high"]
        assert row["p"] <= row["adjusted_p"] <= 1
    fewer = faces.folder / "fewer.txt"
    fewer.write_text("\n".join(faces.keys[:-1]))
    with pytest.raises(UserError, match="lacks 1 of the 64 images"):
        run_audit(settings(against={"path": str(other), "list": str(fewer)}))


def test_shots_are_a_column_like_any_other(faces, settings):
    train = faces.store("train")
    report = run(settings(shots={"train": str(train), "threshold": 0.9}))
    assert [grouping["by"] for grouping in report["groupings"]] == [["group"], ["group", "shots"]]
    score = faces.value_ND.astype(np.float64) @ faces.value_ND.T.astype(np.float64)
    seen = (score > 0.9).sum(axis=1)
    band = np.select([seen >= 5, seen >= 2, seen == 1], ["many", "few", "one"], "zero")
    group = np.array(["a" if int(person[-2:]) % 2 else "b" for person in faces.identities])
    images = {tuple(row["group"]): row["images"] for row in report["groupings"][1]["groups"]}
    assert images == {(g, b): n for g in "ab" for b in set(band) if (n := int(((group == g) & (band == b)).sum()))}


def test_noise_is_dropped_or_kept(faces, settings, tmp_path):
    noises = tmp_path / "noises.txt"
    noises.write_text("# wrong\nPerson_03/12.jpg\n13.png\n")
    embeddings = {"path": str(faces.store()), "noises": str(noises)}
    assert run(settings(embeddings=embeddings))["subject"]["noise"]["images_removed"] == 2
    raw = run(settings(embeddings=embeddings, noise="raw"))["subject"]
    assert (raw["noise"]["images_removed"], raw["images"]) == (0, 64)


def test_unknown_attributes_are_a_group_and_a_note(faces, settings):
    table = faces.attributes("identity,group\nPerson_00,a\nPerson_01,b\n", "few.csv")
    report = run(settings(attributes={"tables": [str(table)]}))
    assert "(unknown)" in rates(report)
    assert "56 of 64 have no group and form the group (unknown)." in report["notes"]


def test_spellings_of_a_group_are_joined_with_a_note(faces, settings):
    text = faces.attributes().read_text().replace("identity,group", "Identity, Group ")
    text = text.replace("Person_00,b", "Person_00, B").replace("Person_02,b", "Person_02,B")
    table = faces.attributes(text, "spelled.csv")
    spelled, plain = (
        run(settings(attributes={"tables": [str(path)]}, by=[["GROUP"]])) for path in (table, faces.attributes())
    )
    assert spelled["groupings"] == plain["groupings"]
    assert "group: ' B' (4), 'B' (4), 'b' (24) are one group, 'b'." in spelled["notes"]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"by": [["hat"]]}, "by: no column 'hat'; known columns are group, age"),
        ({"fail_if": ["gap(rank1)"]}, "cannot read the condition"),
        ({"kind": "meta"}, "has no embeddings of kind 'meta'"),
        ({"gallery": {"path": "absent"}}, "absent: no such embedding store"),
    ],
)
def test_input_errors_are_one_line(settings, changes, what):
    with pytest.raises(UserError) as error:
        run_audit(settings(**changes))
    assert what in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("condition", "what"),
    [
        ("gap(speed) > 1", "this audit has no metric 'speed' there; choose one of rank1, fnir, fpir"),
        ("spread(fmr) > 1", "this audit has no figure 'spread' there; choose one of worst, gap, ratio"),
        ("gap(rank1, by=hat).high > 1", "this audit has no grouping 'hat' there; choose one of group, group+shots"),
        ("gap(rank1).top > 1", "cannot read the condition"),
    ],
)
def test_a_condition_is_checked_before_anything_is_read(settings, condition, what):
    absent = settings(embeddings={"path": "absent"}, fail_if=["gap(fnmr) > 0.05", condition])
    with pytest.raises(UserError) as error:
        run_audit(absent)
    assert what in str(error.value)
    with pytest.raises(UserError, match="absent: no such"):
        run_audit(settings(embeddings={"path": "absent"}, fail_if=["gap(fnmr) > 0.05"]))


def test_scores_have_no_conditions_on_searches(settings, tmp_path):
    config = settings(embeddings=None, scores=str(tmp_path / "absent.csv"), fail_if=["gap(fnir) > 0"])
    with pytest.raises(UserError, match=r"no metric 'fnir' there; choose one of fmr, fnmr$"):
        run_audit(config)


def test_a_condition_on_what_could_not_be_measured_is_undecided(settings):
    # Nobody is mistaken for another at this score.
    report = run(settings(threshold={"score": 0.9999}, fail_if=["ratio(fmr) > 2", "gap(fnmr) > 2"]))
    nothing, gap = report["conditions"]
    assert nothing["state"] == "undecided"
    assert nothing["reasons"] == ["ratio(fmr) > 2: ratio(fmr, by=group) has no value, no group has a false match"]
    assert (gap["state"], gap["reasons"]) == ("holds", [])


def test_the_same_audit_is_the_same_report(settings):
    assert json.dumps(run(settings())) == json.dumps(run(settings()))


def test_two_models_that_lack_different_images_are_refused(faces, settings):
    other = faces.store("other")
    array = np.load(other / "direct.npy", mmap_mode="r+")
    array[7] = 0
    array.flush()
    with pytest.raises(UserError, match=r"1 images have a usable embedding of one model only"):
        run_audit(settings(against={"path": str(other)}, allow_missing=1))
    with pytest.raises(UserError, match="against_gallery: this key is required"):
        run_audit(settings(against={"path": str(faces.store())}, gallery={"path": str(faces.gallery())}))


def test_the_notebook_cell_of_the_docs_shows_the_rates_as_a_metric_frame(root, faces, settings, monkeypatch):
    (cell,) = re.findall(r"```python\n(.*?)```", (root / "docs/auditing.md").read_text(), re.DOTALL)
    assert len([line for line in cell.splitlines() if line]) == 5
    genders = [f"Person_{number:02d},{'mf'[number % 2]}" for number in range(16)]
    table = faces.attributes("\n".join(["identity,gender", *genders]), "genders.csv")
    config = settings(by=[["gender"]], attributes={"tables": [str(table)]})
    (faces.folder / "audit.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
    monkeypatch.chdir(faces.folder)
    names = {}
    exec(cell, names)
    frame, expected = names["frame"], rates(run(config))
    assert set(frame.by_group.index) == {"f", "m"}
    for gender, row in frame.by_group.iterrows():
        fmr = expected[gender]["fmr"]
        assert (row["rate"], row["events"], row["trials"]) == (fmr["rate"], fmr["events"], fmr["trials"])
    assert frame.difference()["rate"] == pytest.approx(abs(expected["f"]["fmr"]["rate"] - expected["m"]["fmr"]["rate"]))


def test_a_metric_frame_of_an_intersection_and_of_nothing_measured(settings):
    result = run_audit(settings(by=[["group", "age"]], bins={"age": [40]}))
    frame = result.metric_frame("rank1", by=["group", "age"])
    assert frame.by_group.index.names == ["group", "age"]
    assert len(frame.by_group) == 4
    with pytest.raises(UserError, match=r"no grouping by group: groupings of this audit are group\+age"):
        result.metric_frame("rank1", by="group")
    with pytest.raises(UserError, match="no metric 'speed': metrics of this audit are rank1, fnir, fpir, fmr, fnmr"):
        result.metric_frame("speed", by=["group", "age"])
