"""Check of facelt on a GPU: numerical agreement and speed in at most 8 minutes, as one JSON file and one page.

python -m benchmarks.gpu_check                                            # all parts, to docs/gpu.json and gpu.md
python -m benchmarks.gpu_check --part train_eager --part train_compiled   # some parts; the other rows stay
python -m benchmarks.gpu_check --device cpu --scale 0.005 --out FOLDER    # a trial without a GPU
python -m benchmarks.gpu_check --page-only                                # docs/gpu.md from docs/gpu.json

Needs a checkout and, beyond PyTorch 2.11 and torchvision 0.26: numpy, opencv-python-headless, pillow, pydantic, PyYAML,
rich, typer, tensorboard, safetensors and scikit-learn; a C compiler for torch.compile; for the part onnx also onnx,
onnxscript and onnxruntime-gpu. Neither faiss nor fairlearn. Where nothing can be installed, set PYTHONPATH to a folder
that `pip install --target FOLDER` filled elsewhere. FACELT_SHARED is the folder above the golden files.

Each part runs in a process of this one with a time limit, and the others continue when it fails. Parts share the time
of the whole check. JSON and page are written after each part. Exits with 1 if a part failed or was stopped.
"""

import argparse
import contextlib
import importlib
import json
import math
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from benchmarks.gpu_parts.parts import GPU_PARTS, Part, Unavailable, page_text
from facelt.errors import UserError
from facelt.utils.folder_lock import lock_folder
from facelt.utils.json_values import json_text
from facelt.utils.text import sanitize
from recordio_tools.atomic_io import write_text
from recordio_tools.bounded_io import regular_file_exists

_ROOT = Path(__file__).resolve().parent.parent
SCHEMA = "facelt.gpu_check/1"
STATUSES = ("measured", "not run", "failed", "stopped")
BUDGET_S = 480.0
MAX_REASON, MAX_RESULTS_BYTES, LOG_LINES = 200, 1 << 20, 20
# Packages of the project: a missing module of theirs is a mistake in the code.
OWN = ("benchmarks", "eval_megaface", "facelt", "recordio_tools")
# Imported once, before the processes of the parts are forked.
PRELOADED = "facelt.training.run"
Result = dict[str, Any]


def run_limited(action: Callable[[Path], Mapping[str, float | str]], limit_s: float) -> Result:
    """Runs `action(folder)` in a forked process for at most `limit_s`; returns status, figures or reason, and seconds.

    The folder is temporary. Processes that the action started end with it. Its output goes to a log, whose end is
    printed on stderr if it fails.
    """
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as name:
        folder = Path(name)
        process = multiprocessing.get_context("fork").Process(target=_run_action, args=(action, folder))
        started = time.perf_counter()
        process.start()
        try:
            has_ended = bool(wait([process.sentinel], limit_s))
        finally:
            # The group outlives its leader, which is not reaped yet.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.join()
        seconds = round(time.perf_counter() - started, 1)
        log = [" ".join(line.split()) for line in (folder / "log").read_text(errors="replace").splitlines()]
        log = list(filter(None, log))
        last_line = f"; its last line: {log[-1]}" if log else ""
        if not has_ended:
            result: Result = {"status": "stopped", "reason": f"after {limit_s:.0f} s{last_line}"}
        elif (folder / "result.json").exists():
            result = json.loads((folder / "result.json").read_text())
        else:
            result = {"status": "failed", "reason": f"the process ended with exit code {process.exitcode}{last_line}"}
        if "reason" in result:
            result["reason"] = _plain(result["reason"], folder)
        if result["status"] in ("failed", "stopped"):
            print("\n".join(f"    {line}" for line in log[-LOG_LINES:]), file=sys.stderr)
    return {**result, "seconds": seconds}


def _run_action(action: Callable[[Path], Mapping[str, float | str]], folder: Path) -> None:
    """Runs in the new process, and writes result.json."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", buffering=1, closefd=False) for descriptor in (1, 2))
    try:
        figures = dict(action(folder))
        if wrong := [name for name, value in figures.items() if isinstance(value, float) and not math.isfinite(value)]:
            raise ArithmeticError(f"{', '.join(wrong)}: not finite")
        result: Result = {"status": "measured", "figures": figures}
    except Unavailable as error:
        result = {"status": "not run", "reason": str(error)}
    except Exception as error:
        package = (getattr(error, "name", None) or "").partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and package not in OWN:
            result = {"status": "not run", "reason": f"needs the package {package}"}
        else:
            traceback.print_exc()
            result = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
    write_text(folder / "result.json", json.dumps(result))


def _plain(reason: str, folder: Path) -> str:
    """Returns a reason in one short line, without the paths of this machine."""
    text = " ".join(reason.replace(f"{folder}/", "").replace(f"{_ROOT}/", "").split())
    return sanitize(text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]}...")


def run_part(part: Part, device: str, scale: float, folder: Path) -> Mapping[str, float | str]:
    """Returns the figures of a part; runs in the process for it."""
    import torch

    from benchmarks.gpu_parts.workload import Workload

    module, _, function = part.function.partition(":")
    measure = getattr(importlib.import_module(f"benchmarks.gpu_parts.{module}"), function)
    return measure(Workload(torch.device(device), scale, folder), *part.arguments)


def describe_machine(device: str, _: Path) -> Mapping[str, str]:
    """Returns the machine in words. Raises Unavailable without a GPU."""
    import torch

    cores, version = len(os.sched_getaffinity(0)), torch.__version__
    if device == "cpu":
        return {"machine": f"no GPU, {platform.machine()}, {cores} cores, torch {version}"}
    if not torch.cuda.is_available():
        raise Unavailable("no GPU is available; for a trial add --device cpu --scale 0.005 --out FOLDER")
    return {"machine": f"{torch.cuda.get_device_name()}, {cores} cores, torch {version}"}


def read_results(path: Path) -> dict[str, Result]:
    """Returns the results by part of a JSON file of this script, none if it is absent. Raises UserError."""
    if not regular_file_exists(path):
        return {}
    remedy = "remove the file, or restore it"
    try:
        if path.stat().st_size > MAX_RESULTS_BYTES:
            raise UserError(f"{path}: larger than 1 MB, no file of this script; {remedy}")
        values = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: not JSON; {remedy}") from None
    if not isinstance(values, dict) or values.get("schema") != SCHEMA or not isinstance(values.get("parts"), dict):
        raise UserError(f"{path}: no results of {SCHEMA}; {remedy}")
    parts = {part.name: part for part in GPU_PARTS}
    for name, result in values["parts"].items():
        if name not in parts:
            raise UserError(f"{path}: parts: {name!r} is no part; {remedy}")
        if not _is_valid(parts[name], result):
            raise UserError(f"{path}: parts: {name}: status, figures, machine, commit or scale is wrong; {remedy}")
    return values["parts"]


def _is_valid(part: Part, result: object) -> bool:
    if not isinstance(result, dict) or result.get("status") not in STATUSES:
        return False
    if not all(isinstance(result.get(key, ""), str) for key in ("machine", "commit", "reason")):
        return False
    if result["status"] != "measured":
        return True
    values, scale = result.get("figures"), result.get("scale")
    if not isinstance(values, dict) or not isinstance(scale, float | int):
        return False
    is_text = {figure.name: not figure.spec for figure in part.figures}
    return all(
        name in is_text and isinstance(value, str if is_text[name] else float | int) for name, value in values.items()
    )


def _commit() -> str:
    """Returns the commit of the checkout, with a plus sign if files differ from it; `unknown` without Git."""
    try:
        commands = (["git", "rev-parse", "--short", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no"])
        commit, changes = (
            subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True).stdout.strip()
            for command in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+" if changes else "")


def run_parts(parts: Sequence[Part], arguments: argparse.Namespace) -> list[str]:
    """Runs parts and writes JSON and page after each; returns the names of those that failed or were stopped.

    Raises UserError without a GPU, and if a file cannot be read or written.
    """
    budget_s = BUDGET_S * arguments.patience
    end = time.monotonic() + budget_s
    with contextlib.suppress(ImportError):
        importlib.import_module(PRELOADED)
    json_path, page_path = arguments.out / "gpu.json", arguments.out / "gpu.md"
    results = read_results(json_path)
    probe = run_limited(partial(describe_machine, arguments.device), 60 * arguments.patience)
    if probe["status"] != "measured":
        raise UserError(probe["reason"])
    facts = {**probe["figures"], "commit": arguments.commit or _commit(), "scale": arguments.scale}
    for number, part in enumerate(parts, start=1):
        left = end - time.monotonic()
        if left > 0:
            action = partial(run_part, part, arguments.device, arguments.scale)
            result = run_limited(action, min(part.limit_s * arguments.patience, left))
        else:
            result = {
                "status": "not run",
                "reason": f"the {budget_s:.0f} s of the check were used up",
            }
        result |= {**facts, "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
        results = {**results, part.name: result}
        write_text(json_path, json_text({"schema": SCHEMA, "parts": results}), "choose another --out")
        write_text(page_path, page_text(results), "choose another --out")
        outcome = result.get("reason") or json.dumps(result["figures"])
        print(f"{number}/{len(parts)} {part.name}: {result['status']}, {outcome}", flush=True)
    return [part.name for part in parts if results[part.name]["status"] in ("failed", "stopped")]


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [part.name for part in GPU_PARTS]
    parser.add_argument("--part", action="append", choices=names, help="run this part only; may be repeated")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the parts as a fraction of the whole one")
    parser.add_argument("--out", type=Path, default=_ROOT / "docs", help="folder of gpu.json and gpu.md")
    parser.add_argument("--commit", help="name of the code on the page, where Git is absent")
    parser.add_argument("--patience", type=float, default=1.0, help="factor on all time limits, for a slow machine")
    parser.add_argument("--page-only", action="store_true", help="write the page of the JSON that is there")
    arguments = parser.parse_args(words)
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # else a check for GPUs would start CUDA before a fork
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        if not (0 < arguments.scale <= 1 and 0 < arguments.patience < math.inf):
            raise UserError("--scale must be above 0 and at most 1, --patience above 0")
        is_trial = arguments.device == "cpu" or arguments.scale != 1
        if is_trial and not arguments.page_only and arguments.out.resolve() == _ROOT / "docs":
            raise UserError("--out: docs holds figures of whole runs on a GPU; choose another folder for a trial")
        with lock_folder(arguments.out):
            if arguments.page_only:
                write_text(arguments.out / "gpu.md", page_text(read_results(arguments.out / "gpu.json")))
                return 0
            parts = [part for part in GPU_PARTS if arguments.part is None or part.name in arguments.part]
            failed = run_parts(parts, arguments)
        if failed:
            raise UserError(
                f"{len(failed)} of {len(parts)} parts did not end: {', '.join(failed)}; see the lines above"
            )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
