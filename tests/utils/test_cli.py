"""Errors of commands under torchrun: each is reported once."""

import contextlib
import io
from datetime import timedelta

import pytest
import torch.distributed as dist
import typer

from facelt.distributed.comm import rank
from facelt.errors import UserError
from facelt.utils.cli import run_app


def printed_errors(mistakes: list[str | None]) -> str:
    """Returns what this rank prints to stderr when its command raises its error, if any."""

    def command() -> None:
        raise UserError(mistakes[rank()])

    app = typer.Typer(add_completion=False)
    app.command()(command)
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(output):
        patch.setenv("TORCHELASTIC_RUN_ID", "none")
        if mistakes[rank()] is not None:
            with pytest.raises(SystemExit, match="1"):
                run_app(app, [])
        # torchrun keeps its store until all have ended; here rank 0 does.
        dist.barrier()
    return output.getvalue()


@pytest.mark.parametrize(
    ("mistakes", "lines"),
    [
        (["a", "a", "a"], ["error: a\n"]),
        ([None, None, "b"], ["error: b\n"]),
        (["c", "d", "c"], ["error: c\n", "error: d\n"]),
    ],
)
def test_each_error_is_reported_once(rank_pool, mistakes, lines):
    assert sorted(filter(None, rank_pool.run(printed_errors, 3, mistakes))) == lines


def test_without_the_store_the_error_is_reported(monkeypatch, capsys):
    app = typer.Typer(add_completion=False)

    @app.command()
    def command() -> None:
        raise UserError("alone")

    started = {"RANK": "1", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**started, "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("facelt.utils.cli._STORE_TIMEOUT", timedelta(seconds=0.2))
    with pytest.raises(SystemExit):
        run_app(app, [])
    assert capsys.readouterr().err == "error: alone\n"
