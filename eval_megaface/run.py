"""Command `facelt megaface`, also `python eval_megaface/run.py`."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

if __package__ in (None, ""):
    # Run as a file: sys.path begins with this folder, but the packages are in its parent.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import typer

from facelt.utils.cli import ConfigArgument, OverwriteOption, choose_config, is_first_process, single_command


def megaface(
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file of suite, models and protocol, or a name that `facelt recipes` lists: megaface."),
    ] = None,
    set_: Annotated[list[str], typer.Option("--set", help="Override a key: noise.mode=raw, out=runs/mine.")] = [],  # noqa: B006
    out: Annotated[Path | None, typer.Option(help="Folder of the report, new or empty (key out).")] = None,
    overwrite: OverwriteOption = False,
    allow_overlap: Annotated[
        bool, typer.Option("--allow-overlap", help="Allow probe identities that are in the training set.")
    ] = False,
    allow_missing: Annotated[
        int | None,
        typer.Option("--allow-missing", min=0, help="Exclude up to this many unusable images."),
    ] = None,
    allow_mixed_models: Annotated[
        bool, typer.Option("--allow-mixed-models", help="Compare stores of different models or preprocessing.")
    ] = False,
    allow_duplicates: Annotated[
        bool, typer.Option("--allow-duplicates", help="Keep probes that have the embedding of a distractor.")
    ] = False,
    recipe: ConfigArgument = None,
) -> None:
    """Evaluate rank-k identification among MegaFace's distractors, by shots and groups, with intervals and a report.

    The key compare adds paired differences to one of the models; verification and open_set add TAR at FAR and FNIR at
    FPIR. An interrupted run resumes where it stopped, and --overwrite keeps the searches of the earlier run. Under
    torchrun each process searches a share of the distractors.
    """
    from eval_megaface.config import MegafaceConfig
    from eval_megaface.evaluate import evaluate_megaface
    from eval_megaface.inputs import evaluation_inputs
    from facelt.config.loading import load_config
    from facelt.report.megaface_schema import MegafaceReport
    from facelt.report.megaface_terminal import print_megaface
    from facelt.report.write import report_folder, write_report_files
    from facelt.utils.provenance import run_provenance
    from recordio_tools.progress import progress_bars

    settings = load_config(choose_config(config, recipe), MegafaceConfig, set_)
    flags = {"allow_overlap": allow_overlap, "allow_mixed_models": allow_mixed_models}
    flags["allow_duplicates"] = allow_duplicates
    changes = {"out": out or settings.out} | {key: flag or getattr(settings, key) for key, flag in flags.items()}
    changes["allow_missing"] = settings.allow_missing if allow_missing is None else allow_missing
    settings = settings.model_copy(update=changes)
    if not is_first_process():
        evaluate_megaface(settings)
        return
    with report_folder(MegafaceReport, settings.out, overwrite) as folder:
        with progress_bars() as progress:
            report = evaluate_megaface(settings, progress, folder)
        for line in _coverage_lines(report.models):
            typer.echo(line, err=True)
        values = settings.model_dump(mode="json")
        report = report.with_run(run_provenance("megaface", values, evaluation_inputs(settings, report.suite.files)))
        write_report_files(report, folder)
    print_megaface(report)
    typer.echo(f"report: {settings.out / 'report.html'}")


def _coverage_lines(models: Mapping[str, Any]) -> Iterator[str]:
    """Yields the coverage of the listed images, one line per source and kind of embedding."""
    for model in models.values():
        for source in (model["probes"], model["distractors"]):
            for kind, counts in source["coverage"].items():
                listed, usable = counts["listed"], counts["usable"]
                yield f"{source['path']}: {kind} of {usable:,} of {listed:,} listed images ({usable / listed:.2%})"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with the given arguments, by default those of the command line; exits with 1 on a UserError."""
    single_command(megaface, argv)


if __name__ == "__main__":
    main()
