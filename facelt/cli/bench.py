"""`facelt bench`: benchmark runs of a recipe over seeds, and the results in docs/benchmarks.md."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from facelt.errors import UserError
from facelt.utils.cli import CHECKOUT, set_openmp_wait_policy
from facelt.utils.folder_lock import lock_folder

if TYPE_CHECKING:
    from facelt.benchmarking.run import BenchmarkRun

_RECORDS, _PUBLISHED, _PAGE = "benchmarks.jsonl", "published.yaml", "benchmarks.md"


def bench(
    name: Annotated[str | None, typer.Argument(help="SUITE/RECIPE; without it, only the table is written.")] = None,
    seeds: Annotated[str, typer.Option(help="One run per seed: 0,1,2.")] = "0",
    imbalance: Annotated[float | None, typer.Option(min=1, help="Size of the largest class over the smallest.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default that of the recipe.")] = None,
    set_: Annotated[list[str], typer.Option("--set", help="Override a key of the recipe.")] = [],  # noqa: B006
    out: Annotated[Path, typer.Option(help="Folder for the runs.")] = Path("runs/bench"),
    resume: Annotated[bool, typer.Option("--resume", help="Keep finished runs and continue interrupted ones.")] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Only test the recipe: one epoch per stage, on the CPU.")
    ] = False,
    commit: Annotated[str | None, typer.Option(help="Commit of the sources, for a copy without git.")] = None,
) -> None:
    """Train and test a recipe, record the results, and write the table of all results.

    Runs are written to OUT/SUITE/RECIPE. Each adds a line to docs/benchmarks.jsonl, the source of docs/benchmarks.md.
    """
    docs, configs = CHECKOUT / "docs", CHECKOUT / "configs"
    if not configs.is_dir():
        raise UserError(f"{configs}: does not exist; run the benchmarks in a checkout of the project")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("bench: runs in one process; under torchrun use facelt train")
    if name is not None:
        set_openmp_wait_policy("cpu" if smoke else device or "cuda")
        from facelt.benchmarking.records import source_commit
        from facelt.benchmarking.run import BenchmarkRun, find_recipe

        recipe, device = find_recipe(configs, name), "cpu" if smoke else device
        benchmark = BenchmarkRun(recipe, tuple(set_), imbalance, device, out, commit or source_commit(CHECKOUT))
        if smoke:
            _run_smoke_test(benchmark, _parse_seeds(seeds)[0], docs / _RECORDS)
        else:
            _run_seeds(benchmark, _parse_seeds(seeds), docs / _RECORDS, resume)
    typer.echo(f"table: {_write_page(docs, configs)}")


def _parse_seeds(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise UserError(f"--seeds {text}: expected numbers separated by commas, such as 0,1,2")
    return list(dict.fromkeys(map(int, parts)))


def _run_smoke_test(benchmark: "BenchmarkRun", seed: int, records: Path) -> None:
    from facelt.benchmarking.records import append_record
    from facelt.benchmarking.run import run_smoke_test

    append_record(records, run_smoke_test(benchmark, benchmark.config(seed), typer.echo))
    typer.echo(f"{benchmark.recipe.title}: smoke test passed; the full recipe was not run")


def _run_seeds(benchmark: "BenchmarkRun", seeds: list[int], records: Path, resume: bool) -> None:
    """Runs the recipe once per seed and records the results."""
    from facelt.benchmarking.records import append_record, read_records
    from facelt.benchmarking.run import read_result, require_fresh, run_benchmark

    configs = [benchmark.config(seed) for seed in seeds]
    if not resume:
        require_fresh(configs)
    stored_records = read_records(records)
    for config in configs:
        with lock_folder(config.out):
            record = read_result(config) or run_benchmark(benchmark, config)
        if record not in stored_records:
            append_record(records, record)
        typer.echo(
            f"{benchmark.recipe.title}, seed {config.seed}: accuracy {100 * record.overall:.2f}% on the test split"
        )


def _write_page(docs: Path, configs: Path) -> Path:
    from facelt.benchmarking.records import PUBLISHED_SOURCES, read_published, read_records
    from facelt.benchmarking.table import build_rows, plan_runs, planned_recipes, unmatched_results
    from facelt.report.benchmarks import benchmarks_page
    from recordio_tools.atomic_io import write_text

    recipes, published = planned_recipes(configs), read_published(docs / _PUBLISHED)
    rows = build_rows(read_records(docs / _RECORDS), plan_runs(recipes, published), published)
    write_text(docs / _PAGE, benchmarks_page(rows, unmatched_results(recipes, published), PUBLISHED_SOURCES))
    return docs / _PAGE
