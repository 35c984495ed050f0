"""`facelt evaluate`: what a trained model gets right, overall and by shots, with unknown classes or without."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from facelt.errors import UserError
from facelt.utils.cli import set_openmp_wait_policy


def evaluate(
    checkpoint: Annotated[list[Path], typer.Option(help="A run's folder, or a stage's folder in it; several compare.")],
    split: Annotated[Literal["validation", "test"], typer.Option(help="Which images.")] = "validation",
    convention: Annotated[
        Literal["paper", "released"], typer.Option(help="Shots: many > 100, few < 20, or >= 100 and <= 20.")
    ] = "paper",
    open_: Annotated[
        str | None,
        typer.Option(
            "--open",
            help="Reject images of unknown classes (data.open_set) by: threshold, reachability, openmax or odin.",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Reject below it; else 0.1, or for reachability and odin what keeps 95 % of validation."),
    ] = None,
    open_images: Annotated[
        Path | None, typer.Option(help="Other images of unknown classes: a folder, a .rec, or a list with --open-root.")
    ] = None,
    open_root: Annotated[Path | None, typer.Option(help="The folder the paths of that list lie in.")] = None,
    sweep: Annotated[
        Literal["threshold", "open-classes", "longtailness"] | None,
        typer.Option(help="Figures over it as CSV and plot, in --out; longtailness compares checkpoints."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws the order of open classes.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="A folder for tables of a sweep, of confusion with the open set and of OSCR.")
    ] = None,
    experts: Annotated[
        bool, typer.Option("--experts", help="Of several experts: images one gets right and their average wrong.")
    ] = False,
    per_class: Annotated[Path | None, typer.Option(help="A CSV file of accuracies by class.")] = None,
    batch: Annotated[int, typer.Option(min=1)] = 128,
    workers: Annotated[int, typer.Option(min=0)] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="Print JSON, a line a checkpoint, instead of tables.")] = False,
) -> None:
    """Accuracy on the identities of training: micro overall, mean of class accuracies for many, medium and few.

    With --open also how well images of unknown classes are told from known ones.
    """
    _refuse_what_does_not_fit(open_, threshold, open_images, sweep, out, per_class, len(checkpoint))
    set_openmp_wait_policy(device)
    from facelt.distributed.launch import resolve_device
    from facelt.evaluation.evaluate import OpenSetOptions, evaluate_model
    from facelt.evaluation.sweeps import SWEEPS
    from facelt.inference.model import load_model
    from facelt.report.evaluation import print_evaluation, write_open, write_sweep, write_table
    from facelt.utils.json_values import json_line
    from recordio_tools.progress import progress_bars

    question = OpenSetOptions(open_, threshold, open_images, open_root) if open_ else None
    evaluations = []
    for path in checkpoint:
        model = load_model(path, resolve_device(device))
        with progress_bars() as progress:
            found, images = evaluate_model(
                model, split, convention, question, batch=batch, workers=workers, experts=experts, progress=progress
            )
        evaluations.append(found.with_unique_name(evaluations))
        report = evaluations[-1].report()
        if json:
            typer.echo(json_line(report.json_values()))
        else:
            print_evaluation(report)
    written = [] if per_class is None else [write_table(per_class, *evaluations[0].class_table())]
    if out is not None and open_ is not None:
        reports, curves = [one.report() for one in evaluations], [one.oscr for one in evaluations]
        written += write_open(out, reports, [(curve.fpr_T, curve.rate_T) if curve else None for curve in curves])
    if sweep is not None:
        found = SWEEPS[sweep](evaluations, images, seed)
        written += write_sweep(out, sweep, found.header, found.rows)
    for path in written:
        typer.echo(f"written: {path}", err=json)


def _refuse_what_does_not_fit(open_, threshold, open_images, sweep, out, per_class, checkpoints: int) -> None:
    """Raises UserError before anything is loaded."""
    for option, value in (("--threshold", threshold), ("--open-images", open_images)):
        if value is not None and open_ is None:
            raise UserError(f"{option}: belongs to an open-set method; name one with --open")
    if sweep in ("threshold", "open-classes") and open_ is None:
        raise UserError(f"--sweep {sweep}: varies what an open-set method does; name one with --open")
    if sweep is not None and out is None:
        raise UserError(f"--sweep {sweep}: needs --out, the folder for its table and plot")
    if out is not None and open_ is None and sweep is None:
        raise UserError("--out: there is nothing to write into it without --open or --sweep")
    if per_class is not None and checkpoints > 1:
        raise UserError("--per-class: is of one model; give one --checkpoint")
