"""The GPU check: every part on the CPU at a small size, processes with limits, the page, and refusals."""

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.gpu_check import main, read_results, run_limited
from benchmarks.gpu_parts import golden, search
from benchmarks.gpu_parts.parts import GPU_PARTS, Figure, Unavailable, page_text
from benchmarks.gpu_parts.workload import Workload
from tests.conftest import shared_folder

SCALE = 0.005
NAMES = [part.name for part in GPU_PARTS]
TRIAL = ("--device", "cpu", "--scale", str(SCALE))
needs_golden = pytest.mark.skipif(
    not (shared_folder() / "golden").is_dir(), reason="reference outputs are absent (set FACELT_SHARED)"
)


@pytest.fixture(scope="module")
def checked(root, tmp_path_factory) -> Path:
    """The folder of a whole run on the CPU, in a separate process, as on a GPU."""
    out = tmp_path_factory.mktemp("gpu_check") / "out"
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu_check",
        *TRIAL,
        "--patience",
        "20",
        "--commit",
        "abc",
        "--out",
        out,
    ]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "FACELT_SHARED": str(shared_folder())}
    run = subprocess.run(list(map(str, command)), cwd=root, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return out


def test_every_part_is_measured_on_the_cpu_and_shown(checked):
    results = read_results(checked / "gpu.json")
    assert list(results) == NAMES
    absent = {"golden_float32", "golden_bf16"} if not (shared_folder() / "golden").is_dir() else set()
    for part in GPU_PARTS:
        result = results[part.name]
        assert result["status"] == ("not run" if part.name in absent else "measured"), result
        assert (result["commit"], result["scale"]) == ("abc", SCALE)
        assert result["machine"].startswith("no GPU")
    page = (checked / "gpu.md").read_text()
    assert page == page_text(results)
    rows = [line for line in page.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(GPU_PARTS)
    for part, row in zip(GPU_PARTS, rows, strict=True):
        assert row.startswith(f"| {part.title} |")
        assert row.endswith("| abc |")
        assert ("at 0.005 of the size" in row) == (part.name not in absent)


def test_figures_of_the_cpu_run_agree(checked):
    """Those that do not depend on speed."""
    results = read_results(checked / "gpu.json")
    known = {part.name: {figure.name for figure in part.figures} for part in GPU_PARTS}
    for name, result in results.items():
        assert set(result.get("figures", {})) <= known[name]
    figures = {name: result.get("figures") for name, result in results.items()}
    assert figures["search"]["wrong_ids"] == 0
    assert figures["search"]["score_error"] < 1e-12
    assert figures["world_of_one"]["collectives"] == 0
    assert figures["world_of_one"]["gradient"] < 1e-4
    assert figures["normalisation"]["difference"] == 0
    assert figures["onnx"]["cosine"] > 0.9999
    assert figures["cifar"]["data"] == "1 epochs on made-up images"
    for name in ("train_eager", "train_compiled"):
        share = figures[name]["images_per_s"] / figures[name]["bare_images_per_s"]
        assert figures[name]["share"] == pytest.approx(share)


def workload(folder: Path) -> Workload:
    return Workload(torch.device("cpu"), SCALE, folder)


@needs_golden
def test_golden_comparisons_hold_and_detect_a_wrong_option(tmp_path, monkeypatch):
    monkeypatch.setenv("FACELT_SHARED", str(shared_folder()))
    result = golden.golden_float32(workload(tmp_path))
    assert result["wrong_ranks"] == 0
    assert max(result["heads_and_losses"], result["attention"], result["attention_without_tf32"]) < 1e-5
    bf16 = golden.golden_bf16(workload(tmp_path))
    assert bf16["heads_and_losses"] < 1e-5 < bf16["attention"] < 2e-2
    monkeypatch.setitem(golden.LOGIT_LOSSES, "focal_gamma1", ("focal", {"gamma": 1.01}, None, {}))
    assert golden.golden_float32(workload(tmp_path))["heads_and_losses"] > 1e-4


def test_absent_golden_files_are_no_failure(tmp_path, monkeypatch):
    monkeypatch.setenv("FACELT_SHARED", str(tmp_path))
    with pytest.raises(Unavailable, match="golden files are absent; set FACELT_SHARED"):
        golden.golden_float32(workload(tmp_path))


def test_wrong_ids_and_scores_of_a_search_are_counted(tmp_path, monkeypatch):
    sound = search.top_k

    def broken(*arguments, **options):
        score_SPK, id_SPK = sound(*arguments, **options)
        id_SPK[0, 3, [0, 1]] = id_SPK[0, 3, [1, 0]]
        score_SPK[0, 5, 2] += 1e-6
        return score_SPK, id_SPK

    monkeypatch.setattr(search, "top_k", broken)
    result = search.megaface_search(workload(tmp_path))
    assert result["wrong_ids"] == 2
    assert result["score_error"] == pytest.approx(1e-6, rel=1e-3)


def start_and_sleep(pids: Path, _: Path) -> dict[str, float]:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    pids.write_text(f"{os.getpid()} {child.pid}")
    print("starting\nhalf done", flush=True)
    time.sleep(600)
    return {}


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_part_is_stopped_at_its_limit_with_all_its_processes(tmp_path, capfd):
    result = run_limited(partial(start_and_sleep, tmp_path / "pids"), limit_s=5)
    assert (result["status"], result["reason"]) == ("stopped", "after 5 s; its last line: half done")
    deadline = time.monotonic() + 30
    pids = list(map(int, (tmp_path / "pids").read_text().split()))
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, pids))
    assert "half done" in capfd.readouterr().err


def raise_error(error: Exception, _: Path) -> dict[str, float]:
    raise error


def exit_abruptly(_: Path) -> dict[str, float]:
    print("before the end", flush=True)
    os._exit(3)


@pytest.mark.parametrize(
    ("action", "status", "reason"),
    [
        (lambda folder: {"value": 1.5}, "measured", None),
        (lambda folder: {"value": float("nan"), "other": 1.0}, "failed", "ArithmeticError: value: not finite"),
        (partial(raise_error, RuntimeError("a | b\nc")), "failed", "RuntimeError: a | b c"),
        (partial(raise_error, Unavailable("no such device")), "not run", "no such device"),
        (partial(raise_error, ModuleNotFoundError("", name="onnx.x")), "not run", "needs the package onnx"),
        (partial(raise_error, ModuleNotFoundError("gone", name="facelt.x")), "failed", "ModuleNotFoundError: gone"),
        (exit_abruptly, "failed", "the process ended with exit code 3; its last line: before the end"),
    ],
)
def test_every_end_of_a_part_has_its_status(action, status, reason):
    result = run_limited(action, limit_s=60)
    assert (result["status"], result.get("reason")) == (status, reason)


def test_reasons_are_short_and_without_the_paths_of_the_machine(root):
    def fail(folder: Path) -> dict[str, float]:
        raise OSError(f"{folder}/train.rec and {root}/facelt/x.py\x1b[31m " + 500 * "long ")

    reason = run_limited(fail, limit_s=60)["reason"]
    assert reason.startswith("OSError: train.rec and facelt/x.py")
    assert len(reason) < 220
    assert "\x1b" not in reason


@pytest.fixture
def quick(monkeypatch, tmp_path) -> Path:
    """An output folder, with parts that return at once; `search` fails."""

    def figures(part, device, scale, folder):
        if part.name == "search":
            raise RuntimeError("out of memory")
        return {figure.name: 1.0 if figure.spec else "text" for figure in part.figures if figure.spec != "d"}

    monkeypatch.setattr(gpu_check, "run_part", figures)
    monkeypatch.setattr(gpu_check, "PRELOADED", "json")
    return tmp_path / "out"


def test_the_rest_continues_after_a_failure_and_other_rows_stay(quick, capsys):
    assert main([*TRIAL, "--out", str(quick), "--commit", "first"]) == 1
    assert "error: 1 of 14 parts did not end: search; see the lines above\n" in capsys.readouterr().err
    results = read_results(quick / "gpu.json")
    assert [name for name, result in results.items() if result["status"] != "measured"] == ["search"]
    assert "| failed: RuntimeError: out of memory |" in (quick / "gpu.md").read_text()
    assert main([*TRIAL, "--out", str(quick), "--commit", "second", "--part", "cifar"]) == 0
    commits = {name: result["commit"] for name, result in read_results(quick / "gpu.json").items()}
    assert commits == {name: "second" if name == "cifar" else "first" for name in NAMES}


def test_parts_without_time_left_are_not_run(quick, monkeypatch):
    monkeypatch.setattr(gpu_check, "BUDGET_S", 0.0)
    assert main([*TRIAL, "--out", str(quick), "--part", "cifar"]) == 0
    result = read_results(quick / "gpu.json")["cifar"]
    assert (result["status"], result["reason"]) == ("not run", "the 0 s of the check were used up")


def refusal(capsys, *words: object) -> str:
    assert main(list(map(str, words))) == 1
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_machine_without_a_gpu_is_refused_and_nothing_written(quick, capsys):
    assert "no GPU is available; for a trial add --device cpu" in refusal(capsys, "--out", quick)
    assert not list(quick.parent.iterdir())


def test_trials_are_not_written_to_the_documentation(root, capsys):
    before = (root / "docs/gpu.md").read_bytes()
    for words in (("--device", "cpu"), ("--scale", "0.5")):
        assert "docs holds figures of whole runs on a GPU" in refusal(capsys, *words)
    assert (root / "docs/gpu.md").read_bytes() == before


def test_bad_numbers_and_folders_are_refused(tmp_path, capsys):
    assert "--scale must be above 0" in refusal(capsys, "--scale", "nan")
    assert "--patience above 0" in refusal(capsys, "--patience", "0")
    (tmp_path / "file").touch()
    assert "is a file; choose another folder" in refusal(capsys, *TRIAL, "--out", tmp_path / "file")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "no results of facelt.gpu_check/1"),
        ('{"schema": "facelt.gpu_check/1", "parts": {"other": {}}}', "'other' is no part"),
        ('{"schema": "facelt.gpu_check/1", "parts": {"cifar": {"status": "fine"}}}', "cifar: status, figures"),
        ('{"schema": "facelt.gpu_check/1", "parts": {"cifar": {"status": "measured"}}}', "cifar: status, figures"),
        (" " * (1 << 21), "larger than 1 MB"),
    ],
)
def test_damaged_results_are_refused_and_kept(quick, capsys, text, reason):
    quick.mkdir()
    (quick / "gpu.json").write_text(text)
    for words in ((*TRIAL,), ("--page-only",)):
        error = refusal(capsys, *words, "--out", quick)
        assert "gpu.json: " in error
        assert reason in error
    assert (quick / "gpu.json").read_text() == text
    assert not (quick / "gpu.md").exists()


def test_figures_of_another_type_are_refused(quick, capsys):
    quick.mkdir()
    valid = {"status": "measured", "scale": 1, "figures": {"seconds": 3.0, "data": "made up"}}
    for figures in ({"seconds": "3"}, {"data": 3.0}, {"unknown": 1.0}, {"seconds": True, "data": None}, None):
        values = {"schema": gpu_check.SCHEMA, "parts": {"cifar": {**valid, "figures": figures}}}
        (quick / "gpu.json").write_text(json.dumps(values))
        assert "cifar: status, figures" in refusal(capsys, "--page-only", "--out", quick)
    (quick / "gpu.json").write_text(json.dumps({"schema": gpu_check.SCHEMA, "parts": {"cifar": valid}}))
    assert main(["--page-only", "--out", str(quick)]) == 0
    assert "| none | 3 s; made up |" in (quick / "gpu.md").read_text()


def test_the_page_in_the_documentation_is_that_of_its_results(root):
    assert (root / "docs/gpu.md").read_text() == page_text(read_results(root / "docs/gpu.json"))


def test_rows_without_results_say_not_run():
    rows = [line for line in page_text({}).splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(GPU_PARTS)
    assert all(row.endswith(" | not run |  |  |") for row in rows)


def test_a_goal_is_met_or_missed():
    at_most = Figure("a", "{} times", ".2f", goal=1.1, further=1.03)
    assert at_most.goal_text() == "at most 1.10 times, then 1.03"
    assert [at_most.value_text(value) for value in (1.1, 1.2)] == ["1.10 times (met)", "1.20 times (**missed**)"]
    at_least = Figure("b", "{} of all", ".0%", "at least", 0.9)
    assert [at_least.value_text(value) for value in (0.9, 0.2)] == ["90% of all (met)", "20% of all (**missed**)"]
    assert Figure("c", "{} s", ".1f").value_text(2) == "2.0 s"


def test_names_of_parts_and_figures_are_unique_and_functions_exist(root):
    assert len(set(NAMES)) == len(NAMES)
    for part in GPU_PARTS:
        assert len({figure.name for figure in part.figures}) == len(part.figures)
        module, _, function = part.function.partition(":")
        assert f"def {function}(workload: Workload" in (root / f"benchmarks/gpu_parts/{module}.py").read_text()
