"""A mistake that all processes of torchrun make is told once, and one that a single process makes is not lost."""

import contextlib
import io
from datetime import timedelta

import pytest
import torch.distributed as dist
import typer

from facelt.distributed.comm import rank
from facelt.errors import UserError
from facelt.utils.cli import run_app


def said(mistakes: list[str | None]) -> str:
    """What this rank prints on its way out when it makes its mistake."""

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
def test_each_mistake_is_told_once(rank_pool, mistakes, lines):
    assert sorted(filter(None, rank_pool.run(said, 3, mistakes))) == lines


def test_a_store_that_does_not_answer_hides_no_mistake(monkeypatch, capsys):
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
