"""Measure models on MegaFace: python eval_megaface/run.py --config configs/megaface.yaml"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    # Run as a file: Python put this folder first on the path, where the packages beside it cannot be found.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from facelt.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run with the given arguments (by default the command line's); the exit code: 0, or 1 on a user's mistake."""
    arguments = _parser().parse_args(argv)
    try:
        return _run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="facelt megaface", description="Rank-k identification among MegaFace's distractors, by shots and groups."
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file, see configs/megaface.yaml")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override keys: noise.mode=raw"
    )
    parser.add_argument("--out", type=Path, help="folder of the report (the key out)")
    parser.add_argument(
        "--allow-overlap", action="store_true", help="measure though probe identities are in the training set"
    )
    return parser


def _run(arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from eval_megaface.config import MegafaceConfig
    from eval_megaface.evaluate import evaluate
    from facelt.config import load_config
    from facelt.report import print_report, write_report

    config = load_config(arguments.config, MegafaceConfig, arguments.set)
    changes = {"out": arguments.out or config.out, "allow_overlap": arguments.allow_overlap or config.allow_overlap}
    config = config.model_copy(update=changes)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:

        def begin(label: str, total: int):
            task = progress.add_task(label, total=total)
            return lambda rows: progress.advance(task, rows)

        report = evaluate(config, begin)
    write_report(report, config.out)
    print_report(report)
    print(f"report: {config.out / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
