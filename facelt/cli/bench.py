"""`facelt bench`: a recipe of a suite with several seeds, and the table of results in docs/benchmarks.md."""

import os
from pathlib import Path
from typing import Annotated

import typer

from facelt.errors import UserError
from facelt.utils.cli import set_openmp_wait_policy

CHECKOUT = Path(__file__).resolve().parent.parent.parent
RECORDS, PUBLISHED, PAGE = "benchmarks.jsonl", "published.yaml", "benchmarks.md"


def bench(
    name: Annotated[str | None, typer.Argument(help="SUITE/RECIPE; without it only the table is written.")] = None,
    seeds: Annotated[str, typer.Option(help="One run each: 0,1,2.")] = "0",
    imbalance: Annotated[float | None, typer.Option(min=1, help="Largest class over the smallest.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda, where not the recipe's.")] = None,
    set_: Annotated[list[str], typer.Option("--set", help="Override a key of the recipe.")] = [],  # noqa: B006
    out: Annotated[Path, typer.Option(help="The folder for the runs.")] = Path("runs/bench"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is missing.")] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="One epoch a stage on the CPU: does it work?")] = False,
    commit: Annotated[str | None, typer.Option(help="Of the sources, for a copy without git.")] = None,
) -> None:
    """Train a recipe, test it, record the figures, and write the table of all of them.

    Runs lie in OUT/SUITE/RECIPE; with --resume finished ones are kept and broken ones go on. Each run adds a line to
    docs/benchmarks.jsonl, and docs/benchmarks.md is written from that file alone.
    """
    docs, configs = CHECKOUT / "docs", CHECKOUT / "configs"
    if not configs.is_dir():
        raise UserError(f"{configs}: is absent; run the benchmarks in a checkout of the project")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("bench: runs in one process; under torchrun use facelt train")
    if name is not None:
        set_openmp_wait_policy("cpu" if smoke else device or "cuda")
        from facelt.benchmarking.records import source_commit
        from facelt.benchmarking.run import BenchmarkRun, find_recipe

        recipe = find_recipe(configs, name)
        where = "cpu" if smoke else device
        trial = BenchmarkRun(recipe, tuple(set_), imbalance, where, out, commit or source_commit(CHECKOUT))
        chosen = _seeds(seeds)
        if smoke:
            _smoke(trial, chosen[0], docs / RECORDS)
        elif not _runs(trial, chosen, docs / RECORDS, resume):
            return
    typer.echo(f"table: {_write_page(docs, configs)}")


def _seeds(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise UserError(f"--seeds {text}: expected numbers with commas between them, such as 0,1,2")
    return list(dict.fromkeys(map(int, parts)))


def _smoke(trial, seed: int, records: Path) -> None:
    from facelt.benchmarking.records import append_record
    from facelt.benchmarking.run import run_smoke

    append_record(records, run_smoke(trial, trial.config(seed), typer.echo))
    typer.echo(f"{trial.recipe.title}: smoke test passed; the full recipe was not run")


def _runs(trial, seeds: list[int], records: Path, resume: bool) -> bool:
    """One run a seed; False where a signal stopped them."""
    from facelt.benchmarking.records import append_record, read_records
    from facelt.benchmarking.run import read_result, require_fresh, run_benchmark
    from facelt.distributed.launch import Interrupted

    configs = [trial.config(seed) for seed in seeds]
    if not resume:
        require_fresh(configs)
    known = read_records(records)
    for config in configs:
        record = read_result(config)
        try:
            record = record or run_benchmark(trial, config)
        except Interrupted:
            typer.echo(f"stopped as asked, the state is saved: {config.out}; go on with --resume")
            return False
        if record not in known:
            append_record(records, record)
        typer.echo(f"{trial.recipe.title}, seed {config.seed}: {100 * record.overall:.2f}% of the test images")
    return True


def _write_page(docs: Path, configs: Path) -> Path:
    from facelt.benchmarking.records import PUBLISHED_SOURCES, read_published, read_records
    from facelt.benchmarking.table import build_rows, plan_runs, planned_recipes, unmatched_figures
    from facelt.report.benchmarks import benchmarks_page
    from recordio_tools.atomic_io import write_text

    recipes, published = planned_recipes(configs), read_published(docs / PUBLISHED)
    found = build_rows(read_records(docs / RECORDS), plan_runs(recipes, published), published)
    write_text(docs / PAGE, benchmarks_page(found, unmatched_figures(recipes, published), PUBLISHED_SOURCES))
    return docs / PAGE
