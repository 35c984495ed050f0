"""What every command shares: a user's mistake becomes one line on stderr and exit code 1."""

import hashlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import typer

from facelt.errors import UserError

# Which extra brings a package that a command may miss.
EXTRAS = {
    **dict.fromkeys(("torch", "torchvision", "tensorboard", "safetensors", "sklearn"), "train"),
    **dict.fromkeys(("scipy", "fairlearn", "jinja2", "matplotlib"), "audit"),
    "faiss": "cpu",
    "pymilvus": "milvus",
    "insightface": "insightface",
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "export"),
}
# torchrun's store answers at once; without it a mistake is told by every process.
REACHED_WITHIN = timedelta(seconds=5)


def run_app(app: typer.Typer, argv: Sequence[str] | None = None) -> None:
    """Runs a typer application to its exit."""
    try:
        app(args=None if argv is None else list(argv))
    except UserError as error:
        _stop(str(error))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        _stop(f"this command needs the package {package}: in facelt's folder, pip install '.[{EXTRAS[package]}]'")


def single_command(command: Callable, argv: Sequence[str] | None = None) -> None:
    """Runs one function as a command of its own, as `python -m facelt.train` does."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    run_app(app, argv)


def set_openmp_wait_policy(device: str) -> None:
    """On the CPU lets OpenMP's threads spin between operators; called before torch is loaded, which reads it once.

    Put to sleep they wake so slowly on virtual machines that two threads were measured at a third of one thread's
    speed. A policy that the user has set stays.
    """
    if device == "cpu":
        os.environ.setdefault("OMP_WAIT_POLICY", "active")


def _stop(message: str) -> None:
    if not _already_reported(message):
        from facelt.utils.text import sanitize

        # It may quote what stands in a file: that must not steer a terminal.
        shown = "\n".join(sanitize(line) for line in message.split("\n"))
        print(f"error: {shown}", file=sys.stderr, flush=True)
    raise SystemExit(1)


def _already_reported(message: str) -> bool:
    """Whether another of the processes that torchrun started tells the same mistake; then this one gives it time to.

    Whoever finds a mistake first tells it, so that one which a single process finds is told as well.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        return False
    name = hashlib.sha256(message.encode()).hexdigest()
    try:
        from torch.distributed.rendezvous import rendezvous

        notes, *_ = next(rendezvous("env://", timeout=REACHED_WITHIN))
        told = notes.add(f"facelt/told/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{name}", 1) > 1
    except (ImportError, ValueError, RuntimeError):
        return False
    if told:
        # torchrun ends all processes once one of them has ended.
        time.sleep(1)
    return told
