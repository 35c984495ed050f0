"""IJB and TinyFace from features: the whole report against plain loops, sources of features, and their defects."""

import numpy as np
import pytest

from facelt.errors import UserError
from facelt.evaluation.face_benchmarks import ImageFeatures, evaluate_ijb, evaluate_tinyface
from facelt.report.schema import IjbReport, TinyfaceReport
from facelt.store.ijb import IjbFolder, IjbLists
from facelt.store.tinyface import TinyfaceLists
from facelt.store.writer import StoreWriter
from tests.benchmark_files import DIMENSION, IjbFiles, TinyfaceFiles


@pytest.fixture
def files(tmp_path):
    return IjbFiles(tmp_path / "ijbc")


def features_of(value_ND: np.ndarray, tmp_path, name: str = "features.npy") -> ImageFeatures:
    np.save(tmp_path / name, value_ND)
    return ImageFeatures.open(tmp_path / name, "direct")


def plain_templates(files: IjbFiles, weighted: bool, normalize: bool) -> dict[int, np.ndarray]:
    """Returns the unit feature of each template, by loops over templates, media and images."""
    value_ND = files.feature_ND.astype(float)
    if normalize:
        value_ND /= np.linalg.norm(value_ND, axis=1, keepdims=True)
    if weighted:
        value_ND *= files.score_N[:, None]
    templates = {}
    for template in files.subject_of:
        rows = [row for row, values in enumerate(files.rows) if values[1] == template]
        total = np.zeros(DIMENSION)
        for medium in {files.rows[row][2] for row in rows}:
            total += np.mean([value_ND[row] for row in rows if files.rows[row][2] == medium], axis=0)
        templates[template] = total / np.linalg.norm(total)
    return templates


@pytest.mark.parametrize(("weighted", "normalize"), [(True, False), (False, False), (True, True)])
def test_ijb_equals_plain_loops(files, tmp_path, weighted, normalize):
    lists = IjbLists.read(IjbFolder.open(files.root))
    features = features_of(files.feature_ND, tmp_path)
    report = evaluate_ijb(lists, features, detector_score=weighted, normalize=normalize)
    assert IjbReport.build(report.json_values()) == report
    assert (report.dataset, report.images, report.templates) == ("IJB-C", len(files.rows), len(files.subject_of))
    templates = plain_templates(files, weighted, normalize)

    scores = {True: [], False: []}
    for left, right, same in files.pairs:
        scores[bool(same)].append(templates[left] @ templates[right])
    pairs = report.verification
    assert (pairs.mated, pairs.nonmated, pairs.people) == (36, 36 * 11, 12)
    assert [point.wanted for point in pairs.points] == [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
    wrong = sorted(scores[False], reverse=True)
    for point in pairs.points:
        allowed = int(point.wanted * len(wrong))
        if not allowed:
            assert "non-mated comparisons; there are 396" in point.reason
            continue
        accepted = [score > wrong[allowed] for score in scores[True]]
        assert point.false_matches == allowed
        assert point.tar == pytest.approx(np.mean(accepted))
        assert point.tar_limits[0] < point.tar < point.tar_limits[1]
        assert point.far_limits[0] < point.far < point.far_limits[1]
    assert [point.tar is None for point in pairs.points] == [True] * 4 + [False] * 2

    ranks, fnirs = [], {0.1: [], 0.01: [], 0.001: []}
    for gallery in files.gallery:
        mated, nonmated = [], []
        for probe in files.probes:
            similar = {template: templates[probe] @ templates[template] for template in gallery}
            mates = [
                score for template, score in similar.items() if files.subject_of[template] == files.subject_of[probe]
            ]
            if mates:
                mated.append((1 + sum(score > mates[0] for score in similar.values()), mates[0]))
            else:
                nonmated.append(max(similar.values()))
        ranks += [rank for rank, _ in mated]
        assert (len(mated), len(nonmated)) == (18, 18)
        for fpir, values in fnirs.items():
            if int(fpir * len(nonmated)):
                limit = sorted(nonmated, reverse=True)[int(fpir * len(nonmated))]
                values.append(np.mean([rank > 1 or score <= limit for rank, score in mated]))
    identification = report.identification
    assert [(gallery.name, gallery.templates, gallery.subjects) for gallery in identification.galleries] == [
        ("G1", 6, 6),
        ("G2", 6, 6),
    ]
    assert {rate.rank: rate.rate for rate in identification.ranks} == {
        k: pytest.approx(np.mean([rank <= k for rank in ranks])) for k in (1, 5, 10)
    }
    assert 0 < identification.ranks[0].rate < 1
    assert identification.subjects == 12
    tenth, *others = identification.points
    assert tenth.fnir == pytest.approx(np.mean(fnirs[0.1]))
    assert 0 < tenth.fnir < 1
    assert tenth.fnir_limits[0] < tenth.fnir < tenth.fnir_limits[1]
    assert [half.false_positives for half in tenth.galleries] == [1, 1]
    assert not tenth.supported
    for point in others:
        assert point.fnir is point.fnir_limits is None
        assert "non-mated searches; gallery 1 has 18" in point.reason


def test_without_the_lists_of_1n_there_is_no_identification(files, tmp_path):
    for path in files.root.glob("meta/*_1N_*"):
        path.unlink()
    report = evaluate_ijb(IjbLists.read(IjbFolder.open(files.root)), features_of(files.feature_ND, tmp_path))
    assert report.identification is None


def write_store(path, keys, value_ND):
    value_ND = value_ND / np.linalg.norm(value_ND, axis=1, keepdims=True)
    meta = {"model": {"weights_sha256": "00"}, "preprocessing": {"flip_averaged": True}}
    writer = StoreWriter(path, keys, [""] * len(keys), {"direct": value_ND.shape[1]}, meta, dtype="float32")
    writer.write(0, {"direct": value_ND.astype(np.float32)})
    return writer.finish()


def test_stores_arrays_and_sums_of_arrays_give_the_same_figures(files, tmp_path):
    lists = IjbLists.read(IjbFolder.open(files.root))
    report = evaluate_ijb(lists, features_of(files.feature_ND, tmp_path), normalize=True)
    keys, order = [row[0] for row in files.rows], np.random.default_rng(0).permutation(len(files.rows))
    store = write_store(tmp_path / "store", keys, files.feature_ND)
    shuffled = write_store(tmp_path / "shuffled", [keys[row] for row in order], files.feature_ND[order])
    half_ND = np.random.default_rng(1).standard_normal(files.feature_ND.shape).astype(np.float32)
    np.savez(tmp_path / "sum.npz", embs=half_ND, embs_f=files.feature_ND - half_ND, other=np.ones(3))
    np.savez(tmp_path / "one.npz", embeddings=files.feature_ND, other=np.ones(3))
    for path, arrays in ((store, ()), (shuffled, ()), ("sum.npz", ("embs", "embs_f")), ("one.npz", ())):
        features = ImageFeatures.open(tmp_path / path, "direct", arrays)
        same = evaluate_ijb(lists, features, normalize=True)
        assert [point.tar for point in same.verification.points] == [point.tar for point in report.verification.points]
        assert same.identification.ranks == report.identification.ranks
    source = ImageFeatures.open(store, "direct").source
    assert source == {"name": str(store), "weights_sha256": "00", "kind": "direct", "flip_averaged": True}
    with pytest.raises(UserError, match="has no embeddings of kind 'meta'"):
        ImageFeatures.open(store, "meta")
    np.savez(tmp_path / "other.npz", embs=half_ND, embs_f=half_ND[:, 1:])
    with pytest.raises(UserError, match=r"embs_f is \[\d+, 7\], embs is \[\d+, 8\]"):
        ImageFeatures.open(tmp_path / "other.npz", "direct", ("embs", "embs_f"))


def test_features_that_cannot_be_used_are_named(files, tmp_path):
    lists = IjbLists.read(IjbFolder.open(files.root))
    total, keys = len(files.rows), [row[0] for row in files.rows]
    with pytest.raises(UserError, match=rf"has {total - 1} rows, .*5pts_score\.txt lists {total} images; give one row"):
        evaluate_ijb(lists, features_of(files.feature_ND[1:], tmp_path))
    store = write_store(tmp_path / "store", keys[1:], files.feature_ND[1:])
    with pytest.raises(UserError, match=rf"has no embedding of {keys[0]}, .*; 1 of {total} images are missing"):
        evaluate_ijb(lists, ImageFeatures.open(store, "direct"))
    value_ND = files.feature_ND.copy()
    value_ND[4, 2] = np.inf
    with pytest.raises(UserError, match=rf"the embedding of {keys[4]} holds a value that is not finite; embed"):
        evaluate_ijb(lists, features_of(value_ND, tmp_path))
    template = files.rows[4][1]
    value_ND[[row[1] == template for row in files.rows]] = 0
    with pytest.raises(UserError, match=rf"tid_mid\.txt: the template {template} has features that sum to zero"):
        evaluate_ijb(lists, features_of(value_ND, tmp_path))
    with pytest.raises(UserError, match=r"the embedding of \d+\.jpg has length zero"):
        evaluate_ijb(lists, features_of(value_ND, tmp_path), normalize=True)


@pytest.fixture
def tinyface(tmp_path):
    return TinyfaceFiles(tmp_path / "tinyface")


def test_tinyface_equals_plain_loops(tinyface, tmp_path):
    lists = TinyfaceLists.read(tinyface.folder)
    report = evaluate_tinyface(lists, features_of(tinyface.feature_ND, tmp_path))
    assert TinyfaceReport.build(report.json_values()) == report
    probes = len(tinyface.probe_ids)
    unit_ND = tinyface.feature_ND / np.linalg.norm(tinyface.feature_ND.astype(float), axis=1, keepdims=True)
    gallery_ids = [*tinyface.match_ids, *([-100] * tinyface.distractors)]
    ranks = []
    for probe, identity in enumerate(tinyface.probe_ids):
        order = np.argsort(-(unit_ND[probes:] @ unit_ND[probe]))
        ranks.append(1 + next(ahead for ahead, row in enumerate(order) if gallery_ids[row] == identity))
    assert {rate.rank: rate.rate for rate in report.ranks} == {
        k: pytest.approx(np.mean([rank <= k for rank in ranks])) for k in (1, 5, 10, 20)
    }
    assert 0 < report.ranks[0].rate < report.ranks[1].rate < 1
    assert report.ranks[0].limits[0] < report.ranks[0].rate < report.ranks[0].limits[1]
    assert (report.identities, report.probes, report.probes_without_mate) == (30, 60, 0)
    assert (report.gallery_matches, report.distractors) == (len(tinyface.match_ids), 70)


def test_tinyface_from_a_store_and_probes_without_a_mate(tinyface, tmp_path):
    lists = TinyfaceLists.read(tinyface.folder)
    keys = lists.keys + [f"Gallery_Distractor/{name}" for name in tinyface.names["Gallery_Distractor"]]
    order = np.random.default_rng(0).permutation(len(keys))
    store = write_store(tmp_path / "store", [keys[row] for row in order], tinyface.feature_ND[order])
    ranks = evaluate_tinyface(lists, features_of(tinyface.feature_ND, tmp_path)).ranks
    assert evaluate_tinyface(lists, ImageFeatures.open(store, "direct")).ranks == ranks
    tinyface.write(probe_ids=np.where(tinyface.probe_ids == 1, 99, tinyface.probe_ids)[:, None])
    report = evaluate_tinyface(TinyfaceLists.read(tinyface.folder), ImageFeatures.open(store, "direct"))
    assert (report.probes_without_mate, report.identities) == (2, 29)
    tinyface.write(probe_ids=np.full((60, 1), 99.0))
    with pytest.raises(UserError, match="no probe has its identity in the gallery"):
        evaluate_tinyface(TinyfaceLists.read(tinyface.folder), ImageFeatures.open(store, "direct"))


def test_tinyface_features_that_cannot_be_used_are_named(tinyface, tmp_path):
    lists = TinyfaceLists.read(tinyface.folder)
    listed = len(lists.keys)
    with pytest.raises(UserError, match=rf"has {listed - 1} rows, the lists have 60 probes and {listed - 60} images"):
        evaluate_tinyface(lists, features_of(tinyface.feature_ND[: listed - 1], tmp_path))
    store = write_store(tmp_path / "store", lists.keys[1:], tinyface.feature_ND[1:listed])
    with pytest.raises(UserError, match=rf"has no embedding of {lists.keys[0]}, which"):
        evaluate_tinyface(lists, ImageFeatures.open(store, "direct"))
    for row, name in ((3, lists.keys[3]), (70, lists.keys[70]), (listed + 1, "Gallery_Distractor 2")):
        value_ND = tinyface.feature_ND.copy()
        value_ND[row] = 0
        with pytest.raises(UserError, match=rf"the embedding of {name} has length zero; embed the image again"):
            evaluate_tinyface(lists, features_of(value_ND, tmp_path))
    # Without distractors the gallery is that of the list.
    assert evaluate_tinyface(lists, features_of(tinyface.feature_ND[:listed], tmp_path)).distractors == 0
