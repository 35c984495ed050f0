"""Command-line entry points: errors and interruptions as one line with their exit codes, and process settings."""

import hashlib
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from facelt.errors import Interrupted, UserError
from facelt.utils.text import sanitize

ConfigArgument = Annotated[
    Path | None, typer.Argument(metavar="CONFIG", help="The same as --config.", show_default=False)
]
"""Configuration of a command as its first word."""

OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace the whole output folder.")]
"""For commands that write a folder, which must otherwise be new or empty."""

# The extras of facelt that install a package.
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
        needs = missing_package_hint(error)
        if needs is None:
            raise
        _exit_with_error(f"this command {needs}")


def missing_package_hint(error: ModuleNotFoundError) -> str | None:
    """Returns `needs the package NAME: pip install ...` for a package of an extra, else None."""
    package = (error.name or "").partition(".")[0]
    extra = _EXTRAS.get(package)
    if extra is None:
        return None
    # Most commands of these extras search as well, and faiss-cpu must not be installed over faiss-gpu.
    if extra in ("train", "audit") and importlib.util.find_spec("faiss") is None:
        extra += ",cpu"
    return f"needs the package {package}: pip install 'facelt[{extra}]'"


def single_command(command: Callable, argv: Sequence[str] | None = None) -> None:
    """Runs one function as the only command of a program, as `python -m facelt.train` does."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    run_app(app, argv)


def choose_config(option: Path | None, argument: Path | None) -> Path:
    """Returns the configuration that is given by --config or as a word. Raises typer.BadParameter for none or both."""
    if option is not None and argument is not None:
        raise typer.BadParameter(f"given twice, also as {option}", param_hint=str(argument))
    if option is None and argument is None:
        raise typer.BadParameter(
            "missing; give a YAML file or a name that `facelt recipes` lists", param_hint="--config"
        )
    return option or argument


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
