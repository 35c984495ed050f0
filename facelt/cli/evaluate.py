"""`facelt evaluate`: closed-set and open-set evaluation of trained models."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from facelt.config.base import ShotConvention
from facelt.errors import UserError
from facelt.utils.cli import print_notice, set_openmp_wait_policy
from facelt.utils.folder_lock import require_writable
from facelt.utils.provenance import InputHash


def evaluate(
    checkpoint: Annotated[
        list[Path], typer.Option(help="Run folder, or a stage's folder in it; repeat to compare models.")
    ],
    split: Annotated[
        Literal["validation", "test"] | None,
        typer.Option(help="Split to evaluate on: validation, or for known people test if there is one."),
    ] = None,
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
        list[Path] | None,
        typer.Option(
            help="Other images of unknown classes: a folder, a .rec, or a list with --open-root. Without --open: "
            "strangers, to be separated from the people of the training record; may be repeated."
        ),
    ] = None,
    open_root: Annotated[
        list[Path] | None, typer.Option(help="Folder of a list's paths; one for all lists, or one for each source.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Model (RUN/STAGE) that known people are compared with; the first by default.")
    ] = None,
    reference_score: Annotated[
        str | None, typer.Option(help="Score that known people are compared with; class_mean by default.")
    ] = None,
    sweep: Annotated[
        Literal["threshold", "open-classes", "longtailness"] | None,
        typer.Option(help="Write metrics over it to --out, as CSV and plot; longtailness compares checkpoints."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order of open classes.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the report on known people, or for tables of the sweep, the open-set confusion and the "
            "OSCR curve."
        ),
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

    With --open-images alone, measure how well people of the training record are named while strangers are kept out.
    """
    settings = {name.rstrip("_"): value for name, value in locals().items()}
    open_images, open_root = open_images or [], open_root or []
    is_known_people = bool(open_images) and open_ is None
    _validate_options(open_, threshold, sweep, out, per_class, len(checkpoint), is_known_people)
    if is_known_people:
        _refuse(
            "applies to no evaluation of known people; leave it out", sweep=sweep, per_class=per_class, experts=experts
        )
    else:
        needs_strangers = (
            "applies to known people and strangers; name images of strangers with --open-images, no --open"
        )
        _refuse(needs_strangers, reference=reference, reference_score=reference_score)
        _refuse("takes one source with --open", open_images=open_images[1:], open_root=open_root[1:])
    for folder in (out, per_class and per_class.parent):
        if folder is not None:
            require_writable(folder)
    set_openmp_wait_policy(device)
    from facelt.distributed.launch import resolve_device
    from facelt.inference.model import describe_model, load_model

    for path in checkpoint:
        print_notice(f"model: {describe_model(path)}")
    if is_known_people:
        from facelt.evaluation.known_people import KnownPeopleOptions

        options = KnownPeopleOptions(open_images, open_root, split, convention, reference, reference_score)
        _evaluate_known_people(checkpoint, options, settings, resolve_device(device))
        return
    from facelt.evaluation.evaluate import OpenSetOptions, evaluate_model
    from facelt.evaluation.sweeps import SWEEPS
    from facelt.report.evaluation import print_evaluation
    from facelt.report.write import write_open, write_sweep, write_table
    from facelt.utils.json_values import json_line
    from facelt.utils.provenance import run_provenance
    from recordio_tools.progress import progress_bars

    images_path, images_root = next(iter(open_images), None), next(iter(open_root), None)
    options = OpenSetOptions(open_, threshold, images_path, images_root) if open_ else None
    evaluations = []
    for path in checkpoint:
        model = load_model(path, resolve_device(device))
        with progress_bars() as progress:
            evaluation, images = evaluate_model(
                model,
                split or "validation",
                convention,
                options,
                batch=batch,
                workers=workers,
                experts=experts,
                progress=progress,
            )
        evaluations.append(evaluation.with_unique_name(evaluations))
        run = run_provenance("evaluate", settings, checkpoint_inputs([path], open_images))
        report = evaluations[-1].report().with_run(run)
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


def checkpoint_inputs(checkpoints: list[Path], files: list[Path]) -> list[InputHash]:
    """Returns the hashes of weights and card of each model, whose card describes its training data, and of `files`.

    Folders among `files` are left out. Raises UserError naming what cannot be read.
    """
    from facelt.inference.model import CARD_FILE, WEIGHTS_FILE, find_model_folder

    folders = [find_model_folder(path) for path in checkpoints]
    paths = [folder / name for folder in folders for name in (WEIGHTS_FILE, CARD_FILE)]
    return [InputHash.of_file(path) for path in (*paths, *files) if path.is_file()]


def _evaluate_known_people(checkpoint: list[Path], options: Any, settings: dict[str, Any], device: Any) -> None:
    from facelt.evaluation.known_people import evaluate_known_people
    from facelt.report.known_people_terminal import print_known_people
    from facelt.report.write import write_report
    from facelt.utils.json_values import json_line
    from facelt.utils.provenance import run_provenance
    from recordio_tools.progress import progress_bars

    batch, workers, out, json = (settings[name] for name in ("batch", "workers", "out", "json"))
    with progress_bars() as progress:
        report = evaluate_known_people(
            checkpoint, options, device=device, batch=batch, workers=workers, progress=progress
        )
    report = report.with_run(run_provenance("evaluate", settings, checkpoint_inputs(checkpoint, options.strangers)))
    if json:
        typer.echo(json_line(report.json_values()))
    else:
        print_known_people(report)
    if out is not None:
        typer.echo(f"written: {write_report(report, out)}", err=json)


def _refuse(reason: str, **values) -> None:
    """Raises UserError for the first option that is set."""
    for name, value in values.items():
        if value:
            raise UserError(f"--{name.replace('_', '-')}: {reason}")


def _validate_options(open_, threshold, sweep, out, per_class, checkpoints: int, is_known_people: bool) -> None:
    """Raises UserError for options that exclude each other, before anything is loaded."""
    if threshold is not None and open_ is None:
        raise UserError("--threshold: applies to open-set methods only; choose one with --open")
    if sweep in ("threshold", "open-classes") and open_ is None:
        raise UserError(f"--sweep {sweep}: applies to open-set methods only; choose one with --open")
    if sweep is not None and out is None:
        raise UserError(f"--sweep {sweep}: set --out, the folder for its table and plot")
    if out is not None and open_ is None and sweep is None and not is_known_people:
        raise UserError("--out: there is nothing to write into it without --open, --open-images or --sweep")
    if per_class is not None and checkpoints > 1:
        raise UserError("--per-class: applies to one model; give one --checkpoint")
