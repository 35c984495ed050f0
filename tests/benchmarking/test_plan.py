"""`facelt bench --plan` and `--all`: missing rows, estimates, reuse, and refusals."""

import re
import sys
from collections.abc import Callable

import pytest
import yaml
from typer.testing import CliRunner

from facelt.benchmarking.records import RunRecord, append_record, config_digest, machine_name, read_records
from facelt.cli.bench import _parse_budget
from facelt.cli.main import app
from facelt.config.loading import load_config
from facelt.config.train import TrainConfig
from facelt.errors import UserError

ROW = re.compile(r" *(?P<minutes>[\d.]+)  (?P<title>tiny/\S+, seed \d+)(?: \(reuses (?P<reused>.*)\))?")


@pytest.fixture
def bench(checkout, tmp_path) -> Callable[..., str]:
    """bench(*words) -> its output; with `fails` its message. The suite also has ncm, which begins as softmax does."""
    suite = checkout / "configs" / "tiny"
    plain = yaml.safe_load((suite / "base.yaml").read_text())["stages"][0]
    ncm = {"name": "ncm", "init_from": "plain", "method": {"name": "ncm"}, "embedding": "none", "epochs": 0}
    (suite / "ncm.yaml").write_text(yaml.safe_dump({"base": "base.yaml", "stages": [plain, {**ncm, "keep": "last"}]}))

    def call(*words: object, fails: bool = False) -> str:
        done = CliRunner().invoke(app, ["bench", *map(str, words), "--out", str(tmp_path / "runs"), "--commit", "c1"])
        if fails:
            assert done.exit_code == 1
            assert isinstance(done.exception, UserError), done.output
            return str(done.exception)
        assert done.exit_code == 0, done.exception or done.output
        return done.output

    return call


def rows(output: str) -> dict[str, tuple[float, str | None]]:
    """Minutes and reused stages of the rows of a plan, in their order."""
    matches = filter(None, map(ROW.fullmatch, output.splitlines()))
    return {match["title"]: (float(match["minutes"]), match["reused"]) for match in matches}


def measured(checkout, recipe: str, minutes: float) -> RunRecord:
    """A record of this machine, as of a run of `minutes`."""
    config = load_config(checkout / f"configs/tiny/{recipe}.yaml", TrainConfig)
    origin = {"suite": "tiny", "recipe": recipe, "imbalance": 4, "config": config_digest(config), "seed": 0}
    figures = {"overall": 0.5, "many": None, "medium": None, "few": 0.5, "chosen": "last epoch", "minutes": minutes}
    return RunRecord(**origin, machine=machine_name("cpu"), torch="2", commit="c", **figures)


def test_rows_are_estimated_from_the_recorded_minutes_of_this_machine(bench, checkout):
    append_record(checkout / "docs/benchmarks.jsonl", measured(checkout, "slow", 60.3))
    output = bench("--plan")
    planned = rows(output)
    # softmax has the steps and the network of slow, and ncm only tests once softmax has trained its first stage.
    assert list(planned) == ["tiny/softmax, seed 0", "tiny/ncm, seed 0"]
    assert planned["tiny/softmax, seed 0"] == (60.3, None)
    minutes, reused = planned["tiny/ncm, seed 0"]
    assert (0.3 < minutes < 10, reused) == (True, "plain of tiny/softmax")
    basis = "operations of all steps and branches of each network; 0.3 minutes a row to start"
    speed = f"speed of 1 recorded run in float32 on {machine_name('cpu')}"
    assert f"estimates: {basis}; {speed}\n" in output
    alone = rows(bench("--plan", "--no-reuse"))
    # A pass over the training images and one over the test images: 60 minutes are 4 epochs of 3 passes and the test.
    images, tested = sum(load_config(checkout / "configs/tiny/ncm.yaml", TrainConfig).data.open(0).train_counts), 30
    steps = 4 * (images // 16) * 16
    assert alone["tiny/ncm, seed 0"] == (pytest.approx(60.3 + 60 * images / (3 * steps + tested), abs=0.06), None)
    assert minutes == pytest.approx(0.3 + 60 * (images + tested) / (3 * steps + tested), abs=0.06)


def test_without_a_record_of_this_machine_steps_are_timed(bench, checkout):
    record = measured(checkout, "slow", 60.3).model_copy(update={"machine": "another", "seed": 1})
    append_record(checkout / "docs/benchmarks.jsonl", record)
    output = bench("--plan", "--seeds", "0,1")
    names = ("ncm", "slow", "softmax")
    assert set(rows(output)) == {f"tiny/{name}, seed {seed}" for name in names for seed in (0, 1)} - {
        "tiny/slow, seed 1"
    }
    assert re.search(r"no run in float32 on .* is recorded, tiny/\S+ now made \d+ images/s\n", output)


def test_other_settings_and_imbalances_are_other_rows(bench, checkout):
    append_record(checkout / "docs/benchmarks.jsonl", measured(checkout, "slow", 60.3))
    assert "tiny/slow, seed 0" in rows(bench("--plan", "--imbalance", "2"))
    output = bench("--plan", "--set", "stages.1.epochs=0")
    assert list(rows(output)) == ["tiny/ncm, seed 0"]
    assert output.count("left out: --set stages.1.epochs=0: '1' is not an index of a list of 1") == 2


def test_a_finished_first_stage_is_reused_in_the_plan(bench, checkout):
    bench("tiny/softmax")
    planned = rows(bench("--plan"))
    assert next(iter(planned)) == "tiny/ncm, seed 0"
    assert planned["tiny/ncm, seed 0"][1] == "plain of tiny/softmax"
    bench("tiny/slow")
    bench("tiny/ncm")
    assert bench("--plan") == "no row is missing\nestimates: none are needed\n"


def test_all_runs_the_plan_in_pairs_and_records_every_row(bench, checkout, monkeypatch, tmp_path):
    program = (sys.executable, "-m", "tests.benchmarking.tiny_bench")
    monkeypatch.setattr("facelt.benchmarking.workers.PROGRAM", program)
    monkeypatch.setenv("TINY_CHECKOUT", str(checkout))
    output = bench("--all", "--processes", "2", "--budget", "2h", "--nice")
    stored = read_records(checkout / "docs" / "benchmarks.jsonl")
    assert sorted(record.recipe for record in stored) == ["ncm", "slow", "softmax"]
    (ncm,) = [record for record in stored if record.recipe == "ncm"]
    assert [(stage.stage, stage.recipe) for stage in ncm.reused] == [("plain", "tiny/softmax")]
    assert [record.commit for record in stored] == ["c1"] * 3
    page = (checkout / "docs" / "benchmarks.md").read_text()
    assert all(f"| {recipe} | 4 |" in page for recipe in ("ncm", "slow", "softmax"))
    for record in stored:
        accuracy = f"accuracy {100 * record.overall:.2f}% on the test split, {record.minutes:.1f} minutes"
        assert f"finished: tiny/{record.recipe}, seed 0: {accuracy}, estimate " in output
    assert "finished" not in bench("--all")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--all", "--budget", "5x"), "--budget 5x: expected a time in hours and minutes, such as 150m, 2h or 1h30m"),
        (("--all", "--budget", "0m"), "--budget 0m: expected a time"),
        (("--all", "--budget", ""), "--budget : expected a time"),
        (("--all", "--processes", "0"), "--processes 0: expected 1 or more"),
        (("--plan", "--budget", "2h"), "--budget: only applies to --all"),
        (("tiny/softmax", "--processes", "2"), "--processes: only applies to --all"),
        (("--nice",), "--nice: only applies to --all"),
        (("tiny/softmax", "--plan"), "--plan: takes all recipes; remove tiny/softmax, or run it without --plan"),
        (("tiny/softmax", "--all"), "--all: takes all recipes; remove tiny/softmax"),
        (("--all", "--plan"), "--plan --all: use one of these options at a time"),
        (("--smoke",), "--smoke: tests one recipe; name it"),
        (("--plan", "--seeds", "a"), "--seeds a: expected numbers"),
        (("--plan", "--set", "data.root=/absent"), "/absent"),
        (("--plan", "--set", "optim.lrr=1"), "did you mean 'lr'?"),
        (("--plan", "--set", "seed=1"), "--set seed=1: use --seeds instead"),
    ],
)
def test_mistakes_are_one_line(bench, words, message):
    error = bench(*words, fails=True)
    assert message in error
    assert "\n" not in error


@pytest.mark.parametrize(("text", "minutes"), [("150m", 150), ("2h", 120), ("1h30m", 90), ("2.5h", 150)])
def test_budgets(text, minutes):
    assert _parse_budget(text) == minutes
