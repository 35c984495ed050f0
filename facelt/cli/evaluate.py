"""`facelt evaluate`: closed-set and open-set evaluation of trained models."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from facelt.config.base import ShotConvention
from facelt.errors import UserError
from facelt.utils.cli import set_openmp_wait_policy


def evaluate(
    checkpoint: Annotated[
        list[Path], typer.Option(help="Run folder, or a stage's folder in it; repeat to compare models.")
    ],
    split: Annotated[Literal["validation", "test"], typer.Option(help="Split to evaluate on.")] = "validation",
    convention: Annotated[
        ShotConvention,
        typer.Option(help="Shot bands: many > 100 and few < 20 (paper), or >= 100 and <= 20."),
    ] = "paper",
    open_: Annotated[
        str | None,
        typer.Option(
            "--open",
            help="Reject images of unknown classes (data.open_set) by threshold, reachability, openmax or odin.",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Rejection threshold; by default 0.1, or what accepts 95 % of validation for reachability and odin."
        ),
    ] = None,
    open_images: Annotated[
        Path | None, typer.Option(help="Other images of unknown classes: a folder, a .rec, or a list with --open-root.")
    ] = None,
    open_root: Annotated[Path | None, typer.Option(help="Folder of that list's paths.")] = None,
    sweep: Annotated[
        Literal["threshold", "open-classes", "longtailness"] | None,
        typer.Option(help="Write metrics over it to --out, as CSV and plot; longtailness compares checkpoints."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order of open classes.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for tables of the sweep, the open-set confusion and the OSCR curve.")
    ] = None,
    experts: Annotated[
        bool, typer.Option("--experts", help="Count the images that single experts get right and their average wrong.")
    ] = False,
    per_class: Annotated[Path | None, typer.Option(help="CSV file for accuracies by class.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Batch size.")] = 128,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON, one line per checkpoint, instead of tables.")
    ] = False,
) -> None:
    """Measure accuracy on the training classes: overall, and the mean class accuracy of many, medium and few shots.

    With --open, also measure how well images of unknown classes are rejected.
    """
    _validate_options(open_, threshold, open_images, sweep, out, per_class, len(checkpoint))
    set_openmp_wait_policy(device)
    from facelt.distributed.launch import resolve_device
    from facelt.evaluation.evaluate import OpenSetOptions, evaluate_model
    from facelt.evaluation.sweeps import SWEEPS
    from facelt.inference.model import load_model
    from facelt.report.evaluation import print_evaluation
    from facelt.report.write import write_open, write_sweep, write_table
    from facelt.utils.json_values import json_line
    from recordio_tools.progress import progress_bars

    options = OpenSetOptions(open_, threshold, open_images, open_root) if open_ else None
    evaluations = []
    for path in checkpoint:
        model = load_model(path, resolve_device(device))
        with progress_bars() as progress:
            evaluation, images = evaluate_model(
                model, split, convention, options, batch=batch, workers=workers, experts=experts, progress=progress
            )
        evaluations.append(evaluation.with_unique_name(evaluations))
        report = evaluations[-1].report()
        if json:
            typer.echo(json_line(report.json_values()))
        else:
            print_evaluation(report)
    written = [] if per_class is None else [write_table(per_class, *evaluations[0].class_table())]
    if out is not None and open_ is not None:
        reports = [evaluation.report() for evaluation in evaluations]
        curves = [evaluation.oscr for evaluation in evaluations]
        written += write_open(out, reports, [(curve.fpr_T, curve.rate_T) if curve else None for curve in curves])
    if sweep is not None:
        result = SWEEPS[sweep](evaluations, images, seed)
        written += write_sweep(out, sweep, result.header, result.rows)
    for path in written:
        typer.echo(f"written: {path}", err=json)


def _validate_options(open_, threshold, open_images, sweep, out, per_class, checkpoints: int) -> None:
    """Raises UserError for options that exclude each other, before anything is loaded."""
    for option, value in (("--threshold", threshold), ("--open-images", open_images)):
        if value is not None and open_ is None:
            raise UserError(f"{option}: applies to open-set methods only; choose one with --open")
    if sweep in ("threshold", "open-classes") and open_ is None:
        raise UserError(f"--sweep {sweep}: applies to open-set methods only; choose one with --open")
    if sweep is not None and out is None:
        raise UserError(f"--sweep {sweep}: set --out, the folder for its table and plot")
    if out is not None and open_ is None and sweep is None:
        raise UserError("--out: there is nothing to write into it without --open or --sweep")
    if per_class is not None and checkpoints > 1:
        raise UserError("--per-class: applies to one model; give one --checkpoint")
