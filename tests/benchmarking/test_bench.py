"""`facelt bench`: runs, records, the table, resumed runs, and refusals."""

import hashlib
import json
import math
import signal

import pytest
from typer.testing import CliRunner

from facelt.benchmarking.records import RunRecord, SmokeRecord, read_records
from facelt.benchmarking.run import first_and_last_losses, shorten_recipe
from facelt.cli.main import app
from facelt.config.loading import load_config
from facelt.config.registry import METHODS
from facelt.config.train import TrainConfig
from facelt.errors import Interrupted, UserError
from facelt.inference.predict import predict_all
from facelt.utils.folder_lock import lock_folder


@pytest.fixture
def bench(checkout, tmp_path):
    """bench(*words) -> its output; a failure fails the test, unless `fails` is part of its message.

    bench(*words, fails=message, raises=type) -> the exception of that type.
    """

    def call(*words: object, fails: str | None = None, raises: type[Exception] = UserError) -> str | Exception:
        command = ["bench", *map(str, words), "--out", str(tmp_path / "runs")]
        done = CliRunner().invoke(app, [*command, "--commit", "c1"])
        if fails is None:
            assert done.exit_code == 0, done.exception or done.output
        else:
            assert done.exit_code == 1
            assert fails in str(done.exception)
            assert isinstance(done.exception, raises)
        return done.output if raises is UserError else done.exception

    return call


@pytest.fixture
def records(checkout):
    return lambda: read_records(checkout / "docs" / "benchmarks.jsonl")


@pytest.fixture
def page(checkout):
    return lambda: (checkout / "docs" / "benchmarks.md").read_text()


def subset_digits(config) -> str:
    """Twelve digits of the SHA-256 of the positions and labels of the training images, eight bytes each."""
    split = config.data.open(0).train
    digest = hashlib.sha256()
    for values in (split.members.tolist(), split.labels.tolist()):
        for value in values:
            digest.update(value.to_bytes(8, "little"))
    return digest.hexdigest()[:12]


def test_seeds_are_run_recorded_and_in_the_table(bench, checkout, records, page, tmp_path, monkeypatch):
    seen = []

    def recorded(*given, **more):
        result = predict_all(*given, **more)
        seen.append(float((result.label_N == result.prediction_N).double().mean()))
        return result

    monkeypatch.setattr("facelt.evaluation.evaluate.predict_all", recorded)
    output = bench("tiny/softmax", "--seeds", "0,1", "--set", "log_every=2")
    assert len(seen) == 2
    assert f"tiny/softmax, seed 0: accuracy {100 * seen[0]:.2f}% on the test split" in output
    stored = records()
    assert [(record.suite, record.recipe, record.imbalance, record.seed) for record in stored] == [
        ("tiny", "softmax", 4, 0),
        ("tiny", "softmax", 4, 1),
    ]
    assert [record.overall for record in stored] == pytest.approx(seen)
    assert (stored[0].settings, stored[0].commit, stored[0].chosen) == ((), "c1", "last epoch")
    assert stored[0].config == stored[1].config
    config = load_config(checkout / "configs/tiny/softmax.yaml", TrainConfig)
    assert stored[0].subset == f"cifar-10-batches-py/data_batch_1 to data_batch_5 {subset_digits(config)}"
    assert (stored[0].width, stored[0].epochs) == ("64-128-256-512", (4,))
    assert stored[0].minutes > 0
    # With 12 images at most, every class is a few-shot one.
    assert (stored[0].many, stored[0].medium) == (None, None)
    assert stored[0].few == pytest.approx(seen[0])
    mean, half = 50 * (seen[0] + seen[1]), abs(seen[0] - seen[1]) * 100 / 2**0.5
    assert f"| softmax | 4 | {mean:.2f} ± {half:.2f} | - | - | {mean:.2f} ± {half:.2f} | " in page()
    assert f"| 64-128-256-512 | {stored[0].subset} | 4 | last epoch | 0, 1 |" in page()
    assert "| 38.3 (R) |" in page()
    _, _, missing = page().partition("| not run | smoke test | published |")
    assert "| `facelt bench tiny/slow --imbalance 4 --seeds 0,1,2` | - | - |" in missing
    assert "| `facelt bench tiny/softmax --imbalance 2 --seeds 0,1,2` | - | 50.0 (R) |" in missing
    results = sorted((tmp_path / "runs").rglob("result.json"))
    assert [RunRecord.model_validate_json(path.read_text()) for path in results] == stored


def test_an_interrupted_run_is_continued_and_finished_ones_are_kept(
    bench, records, page, interrupted_training, tmp_path
):
    bench("tiny/softmax", "--seeds", "0")
    before = records()
    with interrupted_training():
        CliRunner().invoke(app, ["bench", "tiny/softmax", "--seeds", "1", "--out", str(tmp_path / "runs")])
    assert records() == before
    bench("tiny/softmax", "--seeds", "0,1", fails="already holds a run; add --resume")
    output = bench("tiny/softmax", "--seeds", "0,1,2", "--resume")
    assert "seed 0" in output
    stored = records()
    assert stored[:1] == before
    assert [item.seed for item in stored] == [0, 1, 2]
    assert "| 0, 1, 2 |" in page()
    # The broken sitting was closed, so both count.
    sessions = [json.loads(path.read_text()) for path in sorted((tmp_path / "runs").rglob("sessions.json"))]
    assert [len(item) for item in sessions] == [1, 2, 1]
    assert stored[1].minutes == pytest.approx(sum(sessions[1]) / 60)
    bench("tiny/softmax", "--seeds", "0,1,2", "--resume")
    assert records() == stored


def test_records_lost_from_the_docs_come_back_from_the_run_folders(bench, records, checkout):
    bench("tiny/softmax")
    before = records()
    (checkout / "docs" / "benchmarks.jsonl").unlink()
    bench("tiny/softmax", "--resume")
    assert records() == before


def test_an_interrupted_run_names_resume_and_records_nothing(bench, records, tmp_path, monkeypatch):
    step = METHODS["classify"].step

    def stops(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(METHODS["classify"], "step", stops)
        for options, advice in (((), "continue with --resume"), (("--smoke",), "run the same command again")):
            error = bench("tiny/softmax", *options, fails=advice, raises=Interrupted)
            assert error.signal_number == signal.SIGTERM
    (folder,) = tmp_path.glob("runs/tiny/softmax/*/seed0")
    with lock_folder(folder):
        bench("tiny/softmax", "--resume", fails=f"{folder}: process ")
    assert records() == []


def test_settings_and_imbalance_make_a_separate_row(bench, records, page):
    bench("tiny/softmax", "--imbalance", "2", "--set", "data.pad=2")
    (record,) = records()
    assert (record.imbalance, record.settings) == (2, ("data.pad=2",))
    (row,) = [line for line in page().splitlines() if line.startswith("| softmax, data.pad=2 | 2 |")]
    assert row.endswith("| - |")
    assert "- `facelt bench tiny/softmax --imbalance 2 --seeds 0 --set data.pad=2`" in page()


def test_a_smoke_test_writes_nothing(bench, checkout):
    (checkout / "docs" / "benchmarks.md").write_text("as committed")
    output = bench("tiny/softmax", "--smoke")
    assert output.endswith("smoke test passed; the full recipe was not run\n")
    assert {path.name: path.read_text() for path in (checkout / "docs").iterdir()} == {"benchmarks.md": "as committed"}


def test_recording_is_for_smoke_tests(bench, records):
    bench("tiny/softmax", "--record", fails="--record: only applies to --smoke")
    assert records() == []


def test_a_file_is_a_recipe_of_its_folder(bench, checkout, records, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/fast.yaml").write_text(f"base: {checkout}/configs/tiny/softmax.yaml\noptim: {{lr: 0.06}}\n")
    bench(tmp_path / "mine/fast.yaml")
    assert [(record.suite, record.recipe) for record in records()] == [("mine", "fast")]
    bench(tmp_path / "mine/absent.yaml", fails="absent.yaml: cannot read the configuration")


def test_an_installed_wheel_keeps_the_results_with_the_runs(bench, checkout, monkeypatch, tmp_path):
    monkeypatch.setattr("facelt.cli.bench.CHECKOUT", None)
    output = bench("tiny/softmax")
    assert output.endswith(f"table: {tmp_path / 'runs' / 'benchmarks.md'}\n")
    assert [record.recipe for record in read_records(tmp_path / "runs" / "benchmarks.jsonl")] == ["softmax"]
    assert list((checkout / "docs").iterdir()) == []


def test_a_recorded_smoke_test_is_reported_and_is_no_result(bench, records, page, tmp_path):
    output = bench("tiny/softmax", "--smoke", "--record")
    assert "plain: loss " in output
    assert "smoke test passed; the full recipe was not run" in output
    (record,) = records()
    assert isinstance(record, SmokeRecord)
    first, last = record.losses["plain"]
    assert last < first
    line = "| `facelt bench tiny/softmax --imbalance 4 --seeds 0,1,2` | passed at c1 | 38.3 (R) |"
    assert line in page().partition("| not run | smoke test | published |")[2]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("last", [2.5, 2.6, math.nan])
def test_a_smoke_test_whose_loss_does_not_fall_fails(bench, records, monkeypatch, last):
    monkeypatch.setattr("facelt.benchmarking.run.first_and_last_losses", lambda config: {"plain": (2.5, last)})
    bench("tiny/softmax", "--smoke", fails=f"the loss of the stage plain does not decrease (2.5 to {last:g})")
    assert records() == []


def test_losses_are_the_means_of_the_first_and_of_the_last_quarter(tmp_path):
    losses = {"one": [5.0, 4.0, 3.0, 2.5, 2.0, 1.5, 1.0, 0.5, 0.25], "two": [3.0, 1.0]}
    lines = [{"stage": stage, "loss": loss, "lr": 9} for stage, values in losses.items() for loss in values]
    lines.insert(3, {"stage": "one", "validation_accuracy": 0.5})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert first_and_last_losses(tmp_path) == {"one": (4.5, 0.375), "two": (3.0, 1.0)}


def test_losses_of_several_levels_are_compared_level_by_level(tmp_path):
    steps = [(6, 2.0), (6, 1.0), (5, 4.0), (5, 3.5), (4, 9.0), (4, 9.0)]
    lines = [{"stage": "chain", "loss": loss, "level": level} for level, loss in steps]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert first_and_last_losses(tmp_path) == {"chain": (5.0, 4.5)}


def test_a_shortened_recipe_keeps_its_shape(checkout, tmp_path):
    config = load_config(checkout / "configs/tiny/softmax.yaml", TrainConfig, ["stages.0.epochs=8"])
    short = shorten_recipe(config, tmp_path / "run")
    assert (short.stages[0].epochs, short.stages[0].schedule.warmup_epochs) == (1, 0.125)
    assert (short.log_every, short.out) == (1, tmp_path / "run")
    assert short.stages[0].model_copy(update={"epochs": 8, "schedule": config.stages[0].schedule}) == config.stages[0]
    none = load_config(checkout / "configs/tiny/softmax.yaml", TrainConfig, ["stages.0.epochs=0"])
    assert shorten_recipe(none, tmp_path).stages[0].epochs == 0


def test_a_shortened_recipe_keeps_its_exact_drops_as_shares(checkout, tmp_path):
    changes = ["stages.0.epochs=8", "stages.0.schedule={name: multistep, at: [4, 6, 9], gamma: 0.1}"]
    config = load_config(checkout / "configs/tiny/softmax.yaml", TrainConfig, changes)
    schedule = shorten_recipe(config, tmp_path / "run", 4).stages[0].schedule
    assert (schedule.milestones, schedule.at) == ((0.5, 0.75, 1.0), ())


def test_a_smoke_test_with_a_step_that_is_not_finite_fails(bench, records):
    bench("tiny/softmax", "--smoke", "--set", "optim.lr=1e30", fails="not finite")
    assert records() == []


@pytest.mark.parametrize(
    ("words", "mistake"),
    [
        (("tiny/sotfmax",), "did you mean tiny/softmax, tiny/slow?"),
        (("tiny/softmax", "--seeds", "0,x"), "--seeds 0,x: expected numbers"),
        (("tiny/softmax", "--set", "seed=3"), "--set seed=3: use --seeds instead"),
        (("tiny/softmax", "--set", "data.imbalance=3"), "use --imbalance instead"),
        (("tiny/softmax", "--set", "optim.lrr=3"), "did you mean 'lr'?"),
        (("tiny/softmax", "--set", "data.root=/absent"), "/absent"),
    ],
)
def test_mistakes_are_one_line(bench, records, words, mistake):
    bench(*words, fails=mistake)
    assert records() == []


def test_without_a_name_only_the_table_is_written(bench, page, tmp_path):
    output = bench()
    assert output == f"table: {tmp_path / 'checkout' / 'docs' / 'benchmarks.md'}\n"
    assert page().partition("| not run | smoke test | published |")[2].count("| `facelt bench ") == 3
    assert not (tmp_path / "runs").exists()


def test_several_processes_are_refused(bench, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    bench("tiny/softmax", fails="runs in one process")
