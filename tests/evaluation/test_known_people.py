"""Known people and strangers: scores and figures recomputed image by image; what is refused."""

import csv
import json
import shutil
from itertools import product

import cv2
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from facelt.config.train import TrainConfig
from facelt.errors import UserError
from facelt.evaluation.evaluate import find_split
from facelt.evaluation.identity_scores import (
    IDENTITY_SCORES,
    IdentityCandidates,
    collect_outputs,
    collect_trained_identities,
    collect_validation_outputs,
)
from facelt.evaluation.known_people import KnownPeopleOptions, evaluate_known_people
from facelt.inference.model import load_model
from facelt.inference.predict import Predictor
from facelt.search.search import open_search
from facelt.stats.differences import RateDifferences
from facelt.stats.intervals import ClusteredCounts, rate_intervals
from facelt.training.run import run
from recordio_tools.face_set import FaceRecord
from tests.evaluation.known_faces import (
    COUNTS,
    IMAGES_EACH,
    STRANGERS,
    PlainOutputs,
    plain_evidence,
    plain_scores,
    train_known,
    write_record,
    write_strangers,
)

CPU = torch.device("cpu")
PLAIN_SCORES = ["class_mean", "nearest_image", "softmax"]
MEMORY_SCORES = [*PLAIN_SCORES, "reachability", "meta_class_mean"]
SERIES = [("run/plain", score) for score in (*PLAIN_SCORES, "calibrated")]
SERIES += [("run/oltr", score) for score in (*MEMORY_SCORES, "calibrated")]
# The scores that are compared, with their references.
COMPARED = [
    (("run/plain", "calibrated"), ("run/plain", "class_mean")),
    (("run/oltr", "calibrated"), ("run/plain", "class_mean")),
    (("run/oltr", "class_mean"), ("run/plain", "class_mean")),
    (("run/oltr", "softmax"), ("run/plain", "softmax")),
]
BANDS = ("many", "medium", "few", "one")


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("known")
    write_record(folder / "faces")
    write_strangers(folder / "strangers")
    return folder


@pytest.fixture(scope="module")
def stages(faces, recipe, tmp_path_factory):
    """The folder of a run with the stages plain and oltr."""
    return train_known(recipe, tmp_path_factory.mktemp("known_run") / "run", faces / "faces/train.rec")


@pytest.fixture(scope="module")
def report(faces, stages):
    """The report on both stages."""
    options = KnownPeopleOptions([faces / "strangers"])
    checkpoints = [stages / "plain", stages / "oltr"]
    return evaluate_known_people(checkpoints, options, device=CPU, batch=16, workers=0)


def read_record(path) -> list[tuple[int, np.ndarray]]:
    """(label, RGB image) of every image of a record."""
    with FaceRecord(path) as record:
        payloads = [bytes(record.read(key).payload) for key in record.image_keys.tolist()]
        images = [cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1] for payload in payloads]
        return list(zip(record.labels.tolist(), images, strict=True))


class PlainModel:
    """All outputs of one stage, one image at a time: of training, test, validation images and strangers."""

    def __init__(self, folder, faces) -> None:
        self.model = load_model(folder, CPU)
        self.data = self.model.config.data.open(self.model.config.seed)
        outputs = PlainOutputs(self.model)
        images = [(label, outputs(image)) for label, image in read_record(faces / "faces/train.rec")]
        self.training = [images[index] for index in self.data.train.members]
        self.splits = {name: [images[index] for index in split.members] for name, split in self.data.evaluation.items()}
        paths = sorted((faces / "strangers").rglob("*.png"))
        self.strangers = [outputs(cv2.imread(str(path))[:, :, ::-1]) for path in paths]
        self.counts = [sum(label == other for label, _ in self.training) for other in range(len(COUNTS))]


@pytest.fixture(scope="module")
def plain_models(faces, stages):
    return {f"run/{stage}": PlainModel(stages / stage, faces) for stage in ("plain", "oltr")}


@pytest.fixture(scope="module")
def plain_results(plain_models):
    """(model, score) -> labels, right answers, scores of known images, and scores of strangers."""
    results = {}
    for model, plain in plain_models.items():
        known = [(label, plain_scores(outputs, plain.training)) for label, outputs in plain.splits["test"]]
        strangers = [plain_scores(outputs, plain.training) for outputs in plain.strangers]
        images = [*plain.splits["test"], *((-1, outputs) for outputs in plain.strangers)]
        odds = calibrated_scores(plain, [outputs for _, outputs in images])
        for scores, value in zip([*(scores for _, scores in known), *strangers], odds, strict=True):
            scores["calibrated"] = (scores["class_mean"][0], value)
        for score in known[0][1]:
            labels = [label for label, _ in known]
            right = [scores[score][0] == label for label, scores in known]
            results[model, score] = (
                labels, right, [scores[score][1] for _, scores in known], [scores[score][1] for scores in strangers]
            )  # fmt: skip
    return results


def calibrated_scores(plain, images) -> list[float]:
    """Log odds by a logistic regression of the validation images, as they are and without their own identity."""
    validation = plain.splits["validation"]
    known = [plain_evidence(outputs, plain.training) for _, outputs in validation]
    strangers = [plain_evidence(outputs, plain.training, own=label) for label, outputs in validation]
    scaler = StandardScaler().fit([*known, *strangers])
    model = LogisticRegression().fit(scaler.transform([*known, *strangers]), [1] * len(known) + [0] * len(strangers))
    return model.decision_function(scaler.transform([plain_evidence(part, plain.training) for part in images])).tolist()


def band(count: int) -> str:
    """The band of an identity by its training images."""
    return "many" if count > 100 else "medium" if count >= 20 else "few" if count > 1 else "one"


def highest_dir(right, scores, strangers, far) -> tuple[float, list[bool]]:
    """DIR over all thresholds that keep the FAR, by trying each score; and the images named there."""
    best = (-1.0, [])
    for threshold in {*scores, *strangers, max(scores) + 1}:
        if sum(score >= threshold for score in strangers) <= far * len(strangers):
            named = [bool(is_right and score >= threshold) for is_right, score in zip(right, scores, strict=True)]
            best = max(best, (sum(named) / len(named), named))
    return best


def limits(low, high):
    """Interval ends as a report has them: None if unknown."""
    return [None, None] if np.isnan(low) else pytest.approx([low, high])


def of(report, model, score):
    return next(result for result in report.scores if (result.model, result.score) == (model, score))


def test_the_report_names_models_scores_and_counts(report, plain_models, faces):
    assert [(result.model, result.score) for result in report.scores] == SERIES
    assert [(model.name, model.default_score) for model in report.models] == [
        ("run/plain", "calibrated"),
        ("run/oltr", "calibrated"),
    ]
    assert (report.split, report.convention, report.notes) == ("test", "paper", [])
    assert report.bands == {"many": "> 100", "medium": "20 to 100", "few": "2 to 19", "one": "1"}
    assert list(report.definitions) == list(IDENTITY_SCORES)
    assert [(source.path, source.images) for source in report.strangers] == [
        (str(faces / "strangers"), STRANGERS * IMAGES_EACH)
    ]
    plain = plain_models["run/plain"]
    labels = [label for label, _ in plain.splits["test"]]
    for name in ("all", *BANDS):
        members = [label for label in labels if name in ("all", band(plain.counts[label]))]
        counts = report.known[name]
        assert (counts.images, counts.identities) == (len(members), len(set(members)))
        assert counts.images > 0


@pytest.mark.parametrize(("model", "score"), SERIES)
def test_accuracy_by_band_is_that_of_the_images_one_by_one(report, plain_models, plain_results, model, score):
    labels, right, _, _ = plain_results[model, score]
    bands = [band(plain_models[model].counts[label]) for label in labels]
    result = of(report, model, score)
    for name in ("all", *BANDS):
        members = [is_right for is_right, other in zip(right, bands, strict=True) if name in ("all", other)]
        assert result.accuracy[name].rate == pytest.approx(np.mean(members))
        assert result.accuracy[name].images == len(members)


@pytest.mark.parametrize(("model", "score"), SERIES)
def test_detection_figures_are_those_of_all_pairs_of_images(report, plain_results, model, score):
    _, right, known, strangers = plain_results[model, score]
    result = of(report, model, score)
    pairs = [(k > s) + (k == s) / 2 for k, s in product(known, strangers)]
    assert result.auroc == pytest.approx(np.mean(pairs), abs=1e-3)
    named = [
        is_right * ((k > s) + (k == s) / 2) for (is_right, k), s in product(zip(right, known, strict=True), strangers)
    ]
    assert result.oscr == pytest.approx(np.mean(named), abs=1e-3)
    threshold = sorted(known, reverse=True)[int(np.ceil(0.95 * len(known))) - 1]
    assert result.fpr_at_95_tpr == pytest.approx(np.mean([s >= threshold for s in strangers]), abs=1e-9)


@pytest.mark.parametrize(("model", "score"), SERIES)
def test_dir_is_that_of_the_best_threshold_that_keeps_the_far(report, plain_models, plain_results, model, score):
    labels, right, known, strangers = plain_results[model, score]
    result = of(report, model, score)
    assert [point.far for point in result.dir] == [0.1, 0.01, 0.001]
    for point in result.dir[:2]:
        best, named = highest_dir(right, known, strangers, point.far)
        assert point.rate.rate == pytest.approx(best)
        # 120 images of strangers allow 12 and 1 false acceptances, fewer than 30. A lower threshold accepts one more.
        assert point.accepted == int(point.far * len(strangers))
        assert point.threshold == pytest.approx(sorted(strangers)[-point.accepted - 1], rel=1e-4)
        assert not point.supported
    bands = [band(plain_models[model].counts[label]) for label in labels]
    for name in ("all", *BANDS):
        members = [is_named for is_named, other in zip(named, bands, strict=True) if name in ("all", other)]
        assert result.dir_by_band[name].rate == pytest.approx(np.mean(members))
    last = result.dir[2]
    assert (last.threshold, last.rate, last.accepted) == (None, None, None)
    assert last.reason == "a FAR of 0.1 % needs 1,000 images of strangers; there are 120"


@pytest.mark.parametrize(("model", "score"), SERIES)
def test_the_curve_runs_through_the_dir_at_each_far(report, plain_results, model, score):
    _, right, known, strangers = plain_results[model, score]
    curve = of(report, model, score).curve
    assert curve.far == sorted({*curve.far, 0.01, 0.1, 1})
    assert curve.far[0] == pytest.approx(1 / 120)
    assert [rate for far, rate in zip(curve.far, curve.dir, strict=True) if far in (0.01, 0.1)] == [
        point.rate.rate for point in of(report, model, score).dir[1::-1]
    ]
    for far, rate in zip(curve.far, curve.dir, strict=True):
        assert rate == pytest.approx(highest_dir(right, known, strangers, far + 1e-9)[0])


def test_intervals_and_differences_are_those_of_plain_counts_by_identity(report, plain_models, plain_results):
    """Every rate has the interval of the plain counts; one without variance has the correlation of all bands."""
    counts = plain_models["run/plain"].counts
    labels = plain_results[SERIES[0]][0]
    identities = sorted(set(labels))
    for metric in ("accuracy", "dir"):
        hits, trials, keys = [], [], []
        for series, name in product(SERIES, ("all", *BANDS)):
            _, right, known, strangers = plain_results[series]
            is_hit = right if metric == "accuracy" else highest_dir(right, known, strangers, 0.01)[1]
            members = [name in ("all", band(counts[label])) for label in labels]
            rows = list(zip(labels, is_hit, members, strict=True))
            hits.append([sum(hit and member for label, hit, member in rows if label == other) for other in identities])
            trials.append([sum(member for label, _, member in rows if label == other) for other in identities])
            keys.append((series, name))
        counted = ClusteredCounts.by_identity(hits, trials)
        whole = [keys.index((series, "all")) for series, _ in keys]
        intervals = rate_intervals(counted, level=0.95, pooled=counted.only(whole))
        for f, (series, name) in enumerate(keys):
            result = of(report, *series)
            rate = result.accuracy[name] if metric == "accuracy" else result.dir_by_band[name]
            assert [rate.low, rate.high] == limits(intervals.low_F[f], intervals.high_F[f])
        for comparison in report.comparisons:
            if comparison.metric != metric:
                continue
            series = comparison.model, comparison.score
            other = comparison.reference_model, comparison.reference_score
            f, reference = (keys.index((each, comparison.band)) for each in (series, other))
            assert comparison.difference == pytest.approx(intervals.rate_F[f] - intervals.rate_F[reference])
            pair = RateDifferences.between(intervals, [f], [reference])
            (low,), (high,) = pair.limits(0.95)
            assert [comparison.low, comparison.high] == limits(low, high)
            assert comparison.p == pytest.approx(pair.p_values()[0])


def test_default_scores_and_classifiers_are_compared_and_holm_adjusts_all_tests(report):
    compared = [
        ((row.model, row.score), (row.reference_model, row.reference_score), row.metric, row.band)
        for row in report.comparisons
    ]
    figures = [("accuracy", name) for name in ("all", *BANDS)] + [("dir", "all")]
    assert compared == [(*pair, *figure) for pair in COMPARED for figure in figures]
    order = sorted(range(len(compared)), key=lambda index: report.comparisons[index].p)
    largest = 0
    for rank, index in enumerate(order):
        row = report.comparisons[index]
        largest = max(largest, min(1, (len(order) - rank) * row.p))
        assert row.adjusted_p == pytest.approx(largest)
        # A single identity has no interval.
        assert (row.low is None) == (row.identities < 2)
        excludes_0 = row.adjusted_low is not None and (row.adjusted_low > 0 or row.adjusted_high < 0)
        assert row.decided == excludes_0 == (row.adjusted_p < 0.05)


@pytest.mark.parametrize("stage", ["plain", "oltr"])
def test_scores_without_the_own_identity_are_those_of_the_other_identities(stages, plain_models, stage):
    plain = plain_models[f"run/{stage}"]
    predictor = Predictor.of(plain.model, 16, 0)
    trained = collect_trained_identities(predictor, plain.data, open_search())
    _, outputs = collect_validation_outputs(predictor, find_split(plain.data, "validation"))
    candidates = IdentityCandidates(outputs, trained)
    expected = [plain_scores(part, plain.training, own=label) for label, part in plain.splits["validation"]]
    assert len(expected) > 5
    for score in PLAIN_SCORES if stage == "plain" else MEMORY_SCORES:
        result = IDENTITY_SCORES[score].compute(candidates)
        assert result.identity_N.tolist() == [part[score][0] for part in expected]
        assert result.score_N == pytest.approx([part[score][1] for part in expected], rel=1e-4)
        assert not (result.identity_N == outputs.label_N).any()


def test_the_command_writes_what_it_measures(cli, report, faces, stages, tmp_path):
    command = (
        "evaluate",
        "--checkpoint",
        stages / "plain",
        "--checkpoint",
        stages / "oltr",
        "--workers",
        0,
        "--batch",
        16,
    )
    code, out, error = cli(*command, "--open-images", faces / "strangers", "--out", tmp_path / "out")
    assert code == 0, error
    assert "Known people named right on test in %" in out
    assert "run/oltr calibrated names" in out
    written = json.loads((tmp_path / "out/report.json").read_text())
    run = written.pop("run")
    assert written == report.json_values()
    weights = {item["path"]: item["sha256"] for item in run["inputs"] if item["path"].endswith("model.safetensors")}
    assert list(weights.values()) == [model["weights_sha256"] for model in written["models"]]
    assert (run["seeds"], run["settings"]["workers"]) == ({"seed": 0}, 0)
    assert run["date"] in (tmp_path / "out/report.html").read_text()
    with (tmp_path / "out/tables/accuracy.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(SERIES) * 5
    code, out, error = cli(*command, "--open-images", faces / "strangers", "--json", "--reference", "run/oltr")
    assert code == 0, error
    assert json.loads(out)["reference"] == {"model": "run/oltr", "score": "class_mean"}


def test_several_sources_of_strangers_are_one_set(report, faces, stages):
    lists = faces / "lists"
    lists.mkdir()
    for name, people in (("first", (0, 1)), ("second", (2, 3, 4))):
        lines = [f"Stranger_{number}/{index:02}.png" for number in people for index in range(IMAGES_EACH)]
        (lists / name).write_text("\n".join(lines))
    for roots in ([faces / "strangers"], [faces / "strangers"] * 2):
        options = KnownPeopleOptions([lists / "first", lists / "second"], roots)
        other = evaluate_known_people([stages / "plain"], options, device=CPU, batch=16, workers=0)
        assert [source.images for source in other.strangers] == [2 * IMAGES_EACH, 3 * IMAGES_EACH]
        first, second = (of(part, "run/plain", "class_mean") for part in (report, other))
        assert second.auroc == pytest.approx(first.auroc)
        assert [point.accepted for point in second.dir] == [point.accepted for point in first.dir]


def test_without_a_test_split_validation_is_used_and_the_report_says_what_was_selected_on_it(
    recipe, refused, faces, tmp_path
):
    folder = train_known(recipe, tmp_path / "run", faces / "faces/train.rec", test_fraction=0, validation_fraction=0.3)
    options = KnownPeopleOptions([faces / "strangers"])
    report = evaluate_known_people([folder / "plain"], options, device=CPU, batch=16, workers=0)
    assert report.split == "validation"
    assert "on which the epoch of run/plain was selected" in report.notes[0]
    assert "calibrated" not in {result.score for result in report.scores}
    assert report.comparisons == []
    words = ("--checkpoint", folder, "--open-images", faces / "strangers", "--split", "test")
    assert "--split test: the configuration of this model has no such split; it has: validation" in refused(
        "evaluate", *words
    )


def test_a_record_without_names_is_noted(recipe, faces, tmp_path):
    shutil.copytree(faces / "faces", tmp_path / "faces")
    (tmp_path / "faces/identities.csv").unlink()
    folder = train_known(recipe, tmp_path / "run", tmp_path / "faces/train.rec")
    options = KnownPeopleOptions([faces / "strangers"])
    report = evaluate_known_people([folder / "plain"], options, device=CPU, batch=16, workers=0)
    assert "has no identities.csv" in report.notes[0]


@pytest.fixture
def refused_command(refused, faces, stages):
    """refused_command(*words, checkpoints, strangers) -> the error of the command."""

    def ask(*words, checkpoints=("plain",), strangers=None) -> str:
        paths = [word for path in checkpoints for word in ("--checkpoint", stages / path)]
        return refused("evaluate", *paths, "--open-images", strangers or faces / "strangers", "--workers", 0, *words)

    return ask


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--reference", "run/other"), "--reference run/other: not among the checkpoints; choose one of run/plain"),
        (("--reference-score", "reachability"), "--reference-score reachability: no score of run/plain; choose one of"),
        (("--threshold", 0.5), "--threshold: applies to open-set methods only"),
        (("--sweep", "longtailness", "--out", "x"), "--sweep: applies to no evaluation of known people"),
        (("--per-class", "x.csv"), "--per-class: applies to no evaluation of known people"),
        (("--experts",), "--experts: applies to no evaluation of known people"),
        (("--open-images", "absent"), "absent: no such file or folder"),
        (("--open-root", "a", "--open-root", "b"), "--open-root: 2 folders for 1 --open-images"),
    ],
)
def test_options_that_do_not_fit_are_one_line(refused_command, words, message):
    assert message in refused_command(*words)


def test_options_of_known_people_need_strangers(refused, faces, stages):
    command = ("evaluate", "--checkpoint", stages / "plain")
    strangers = ("--open-images", faces / "strangers")
    assert "--reference: applies to known people" in refused(*command, "--reference", "run/plain")
    assert "--reference-score: applies to known people" in refused(*command, "--reference-score", "class_mean")
    open_set = (*command, "--open", "threshold", *strangers)
    assert "--open-images: takes one source with --open" in refused(*open_set, *strangers)
    assert "--open-root: takes one source with --open" in refused(*open_set, "--open-root", "a", "--open-root", "b")


def test_strangers_must_be_strangers(refused_command, faces, tmp_path):
    shutil.copytree(faces / "strangers", tmp_path / "people")
    shutil.move(tmp_path / "people/Stranger_0", tmp_path / "people/known_3")
    message = refused_command(strangers=tmp_path / "people")
    assert "has people that run/plain is trained on, 1 in all: Known_3; leave their images out" in message
    (tmp_path / "list").write_text("Stranger_1/00.png\nknown_3/00.png\n")
    words = ("--open-root", tmp_path / "people")
    assert "1 in all: Known_3" in refused_command(*words, strangers=tmp_path / "list")
    shutil.copytree(faces / "faces", tmp_path / "copy")
    assert "10 in all: Known_0, Known_1, Known_2, Known_3, Known_4, ...; leave" in refused_command(
        strangers=tmp_path / "copy/train.rec"
    )
    (tmp_path / "copy/identities.csv").unlink()
    assert "run/plain is trained on this record" in refused_command(strangers=faces / "faces/train.rec")


def test_strangers_must_be_readable(refused_command, faces, tmp_path):
    shutil.copytree(faces / "strangers", tmp_path / "people")
    next((tmp_path / "people").rglob("*.png")).write_bytes(b"nothing")
    assert "1 images cannot be used" in refused_command(strangers=tmp_path / "people")


def test_without_any_readable_image_there_is_nothing_to_measure(recipe, refused, faces, tmp_path):
    folder = train_known(recipe, tmp_path / "run", faces / "faces/train.rec", max_bad_images=5)
    (tmp_path / "people").mkdir()
    (tmp_path / "people/a.png").write_bytes(b"nothing")
    message = refused("evaluate", "--checkpoint", folder, "--open-images", tmp_path / "people", "--workers", 0)
    assert "a.png: not a JPEG, PNG, WebP or BMP image; none of the 1 images that were tried can be used" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_fraction": 0.1}, "run/plain and run/plain (2) hold out different images, first train.rec:"),
        ({"validation_fraction": 0.3}, "run/plain and run/plain (2) are trained on different numbers of images"),
    ],
    ids=["test", "training"],
)
def test_models_of_different_splits_are_not_compared(recipe, refused, faces, stages, tmp_path, changes, message):
    folder = train_known(recipe, tmp_path / "run", faces / "faces/train.rec", **changes)
    words = ("--checkpoint", stages / "plain", "--checkpoint", folder / "plain", "--open-images", faces / "strangers")
    assert message in refused("evaluate", *words, "--workers", 0)


def test_a_copy_of_the_record_is_the_same_data_and_another_record_is_not(recipe, refused, faces, stages, tmp_path):
    shutil.copytree(faces / "faces", tmp_path / "copy")
    folder = train_known(recipe, tmp_path / "run", tmp_path / "copy/train.rec")
    options = KnownPeopleOptions([faces / "strangers"])
    checkpoints = [stages / "plain", folder / "plain"]
    report = evaluate_known_people(checkpoints, options, device=CPU, batch=16, workers=0)
    assert [model.name for model in report.models] == ["run/plain", "run/plain (2)"]
    shutil.rmtree(tmp_path / "copy")
    write_record(tmp_path / "copy", seed=500)
    words = ("--checkpoint", stages / "plain", "--checkpoint", folder / "plain", "--open-images", faces / "strangers")
    message = refused("evaluate", *words, "--workers", 0)
    assert "run/plain and run/plain (2) hold out different images, first train.rec:" in message


def test_models_that_cannot_read_the_same_images_are_not_compared(recipe, refused, faces, tmp_path):
    folder = tmp_path / "people"
    shutil.copytree(faces / "strangers", folder)
    image = cv2.imread(str(folder / "Stranger_0/00.png"))
    cv2.imwrite(str(folder / "Stranger_0/00.png"), cv2.resize(image, (20, 20)))
    words = []
    for name, pixels in (("all", 1000), ("small", 300)):
        options = {"resize": True, "max_bad_images": 1, "max_pixels": pixels}
        words += ["--checkpoint", train_known(recipe, tmp_path / name, faces / "faces/train.rec", **options) / "plain"]
    message = refused("evaluate", *words, "--open-images", folder, "--workers", 0)
    assert "all/plain and small/plain could not read the same images" in message


def test_outputs_that_are_not_finite_are_refused(recipe, faces, tmp_path):
    model = load_model(train_known(recipe, tmp_path / "run", faces / "faces/train.rec") / "plain", CPU)
    data = model.config.data.open(model.config.seed)
    with torch.no_grad():
        model.method.head.weight[3] = torch.nan
    with pytest.raises(UserError, match=r"train.rec:\d+: the model's output is not finite"):
        collect_outputs(Predictor.of(model, 16, 0), data.evaluation["test"])


def test_data_that_are_no_record_are_refused(recipe, refused, faces, tmp_path):
    people = sorted((faces / "strangers").rglob("*.png"))
    lines = [f"{path.relative_to(faces / 'strangers')} {int(path.parent.name[-1])}" for path in people]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    data = {"kind": "list", "root": str(faces / "strangers"), "crop": 16, "resize": 16, "workers": 0}
    splits = {"train": str(tmp_path / "list.txt"), "validation": str(tmp_path / "list.txt")}
    values = recipe(tmp_path / "run", data={**data, **splits})
    values["stages"] = [{**values["stages"][0], "epochs": 1}]
    trained = run(TrainConfig.model_validate(values))
    message = refused("evaluate", "--checkpoint", trained, "--open-images", faces / "strangers", "--workers", 0)
    assert "is trained on data of kind list" in message


def test_a_record_without_held_out_images_is_refused(recipe, refused, faces, tmp_path):
    folder = train_known(recipe, tmp_path / "run", faces / "faces/train.rec", test_fraction=0, validation_fraction=0)
    message = refused("evaluate", "--checkpoint", folder, "--open-images", faces / "strangers", "--workers", 0)
    assert "its record has no images held out to evaluate on; train with data.test_fraction" in message
