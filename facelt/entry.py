"""What every command shares: a user's mistake becomes one line on stderr and exit code 1."""

import os
import sys
from collections.abc import Callable, Sequence

import typer

from facelt.errors import UserError
from recordio_tools.errors import RecordIOError

# Which extra brings a package that a command may miss.
EXTRAS = {
    **dict.fromkeys(("torch", "torchvision", "tensorboard", "safetensors"), "train"),
    **dict.fromkeys(("scipy", "sklearn", "fairlearn", "jinja2", "matplotlib"), "audit"),
    "faiss": "cpu",
}


def run_app(app: typer.Typer, argv: Sequence[str] | None = None) -> None:
    """Runs a typer application to its exit."""
    try:
        app(args=None if argv is None else list(argv))
    except (UserError, RecordIOError) as error:
        _stop(str(error))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        _stop(f"this command needs the package {package}: pip install 'facelt[{EXTRAS[package]}]'")


def single_command(command: Callable, argv: Sequence[str] | None = None) -> None:
    """Runs one function as a command of its own, as `python -m facelt.train` does."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    run_app(app, argv)


def keep_threads_awake(device: str) -> None:
    """On the CPU lets OpenMP's threads spin between operators; called before torch is loaded, which reads it once.

    Put to sleep they wake so slowly on virtual machines that two threads were measured at a third of one thread's
    speed. A policy that the user has set stays.
    """
    if device == "cpu":
        os.environ.setdefault("OMP_WAIT_POLICY", "active")


def _stop(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(1)
