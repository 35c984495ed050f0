"""Command-line entry points: errors and interruptions as one line with their exit codes, and process settings."""

import hashlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import typer

from facelt.errors import Interrupted, UserError
from facelt.utils.text import sanitize

# Root of the source checkout, if the package is imported from one.
CHECKOUT = Path(__file__).resolve().parent.parent.parent
# The extra of facelt that installs a package.
_EXTRAS = {
    **dict.fromkeys(("torch", "torchvision", "tensorboard", "safetensors", "sklearn"), "train"),
    **dict.fromkeys(("scipy", "fairlearn", "jinja2", "matplotlib"), "audit"),
    "faiss": "cpu",
    "pymilvus": "milvus",
    "insightface": "insightface",
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "export"),
}
# Without torchrun's store every process reports the error.
_STORE_TIMEOUT = timedelta(seconds=5)


def run_app(app: typer.Typer, argv: Sequence[str] | None = None) -> None:
    """Runs a typer application. One line on stderr ends it after an error of the user, with exit code 1, and after a
    stop signal, with 128 and the signal's number.
    """
    try:
        app(args=None if argv is None else list(argv))
    except UserError as error:
        _exit_with_error(str(error))
    except Interrupted as error:
        print_notice(str(error))
        if not is_first_process():
            time.sleep(1)  # torchrun ends all processes when the first one exits
        raise SystemExit(128 + error.signal_number) from None
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            raise
        _exit_with_error(
            f"this command needs the package {package}: in facelt's folder, pip install '.[{_EXTRAS[package]}]'"
        )


def single_command(command: Callable, argv: Sequence[str] | None = None) -> None:
    """Runs one function as the only command of a program, as `python -m facelt.train` does."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    run_app(app, argv)


def set_openmp_wait_policy(device: str) -> None:
    """Makes OpenMP threads spin between operators on the CPU; call it before torch is imported.

    On virtual machines sleeping threads wake so slowly that two threads ran at a third of the speed of one. A policy
    set by the user is kept.
    """
    if device == "cpu":
        os.environ.setdefault("OMP_WAIT_POLICY", "active")


def is_first_process() -> bool:
    """Returns whether this is the process of rank 0 under torchrun, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def print_notice(text: str) -> None:
    """Prints a line on stderr, once under torchrun; names in it cannot control the terminal."""
    if is_first_process():
        typer.echo(sanitize(text), err=True)


def _exit_with_error(message: str) -> None:
    if not _already_reported(message):
        # The message may quote a file, whose control characters must not reach the terminal.
        text = "\n".join(sanitize(line) for line in message.split("\n"))
        print(f"error: {text}", file=sys.stderr, flush=True)
    raise SystemExit(1)


def _already_reported(message: str) -> bool:
    """True if another process of torchrun reports the same message; waits a moment for it to do so.

    The first process that registers a message in torchrun's store reports it.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        return False
    name = hashlib.sha256(message.encode()).hexdigest()
    try:
        from torch.distributed.rendezvous import rendezvous

        store, *_ = next(rendezvous("env://", timeout=_STORE_TIMEOUT))
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        is_reported = store.add(f"facelt/reported/{restart}/{name}", 1) > 1
    except (ImportError, ValueError, RuntimeError):
        return False
    if is_reported:
        time.sleep(1)  # torchrun ends all processes when the first one exits
    return is_reported
