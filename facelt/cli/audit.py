"""`facelt audit`: recognition errors by demographic group, with confidence intervals and a report."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from facelt.config.base import EmbeddingKind
from facelt.errors import UserError
from facelt.utils.cli import ConfigArgument, OverwriteOption, choose_config

# Exit codes if a condition of --fail-if is met, and if none is but one is undecided.
FAILED = 3
UNDECIDED = 4


def audit(
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file, or a name that `facelt recipes` lists; the options below override its keys."),
    ] = None,
    set_: Annotated[list[str], typer.Option("--set", help="Set any key: statistics.level=0.9.")] = [],  # noqa: B006
    embeddings: Annotated[
        Path | None,
        typer.Option(help="Embeddings to audit: a store, a .npy or .npz file, or a tree of IMAGE_ALGORITHM.bin files."),
    ] = None,
    items: Annotated[
        Path | None,
        typer.Option(help="CSV file of the rows of a .npy or .npz file, in their order."),
    ] = None,
    array: Annotated[str | None, typer.Option(help="Name of the array in a .npz file.")] = None,
    images: Annotated[
        Path | None, typer.Option("--list", help="List of the images to audit; required for a tree.")
    ] = None,
    algorithm: Annotated[str | None, typer.Option(help="ALGORITHM in the file names of a tree.")] = None,
    noises: Annotated[Path | None, typer.Option(help="List of mislabelled images to leave out.")] = None,
    gallery: Annotated[Path | None, typer.Option(help="Distractors to search among: a store, array or tree.")] = None,
    gallery_list: Annotated[Path | None, typer.Option(help="List of the distractors; required for a tree.")] = None,
    gallery_noises: Annotated[Path | None, typer.Option(help="List of distractors to leave out.")] = None,
    scores: Annotated[Path | None, typer.Option(help="CSV file id1,id2,score,label instead of embeddings.")] = None,
    higher_is: Annotated[
        Literal["same", "different"] | None,
        typer.Option(help="Meaning of a higher score in --scores: similarities are same, distances different."),
    ] = None,
    training: Annotated[
        Path | None, typer.Option(help="Training .rec to count by group, with identities.csv in its folder.")
    ] = None,
    attributes: Annotated[list[Path], typer.Option(help="CSV file of attributes; repeatable.")] = [],  # noqa: B006
    key: Annotated[str | None, typer.Option(help="Column of the CSV that names the image or identity.")] = None,
    absent_as_failures: Annotated[
        bool,
        typer.Option(
            "--absent-as-failures", help="Count images that an attribute table lists without an embedding as failures."
        ),
    ] = False,
    actors: Annotated[Path | None, typer.Option(help="FaceScrub's list of actors.")] = None,
    actresses: Annotated[Path | None, typer.Option(help="FaceScrub's list of actresses.")] = None,
    by: Annotated[
        list[str], typer.Option(help="Column to group by, or several for their intersection: gender,age; repeatable.")
    ] = [],  # noqa: B006
    bins: Annotated[list[str], typer.Option(help="Bin a numeric column: age=18,30,45,60; repeatable.")] = [],  # noqa: B006
    min_identities: Annotated[
        int | None, typer.Option(min=2, help="Smaller groups are shown but not compared.")
    ] = None,
    threshold_at: Annotated[list[str], typer.Option(help="fmr=1e-3 and fpir=1e-2, or score=0.4.")] = [],  # noqa: B006
    threshold_from: Annotated[Path | None, typer.Option(help="Store to set the thresholds on.")] = None,
    train: Annotated[Path | None, typer.Option(help="Store of training embeddings, to group by pseudo-shots.")] = None,
    shots_at: Annotated[
        float | None, typer.Option(help="Similarity above which a training image counts as a pseudo-shot.")
    ] = None,
    against: Annotated[Path | None, typer.Option(help="Another model's embeddings of the same images.")] = None,
    against_gallery: Annotated[
        Path | None, typer.Option(help="The other model's embeddings of the same distractors.")
    ] = None,
    kind: Annotated[EmbeddingKind | None, typer.Option(help="Kind of embedding.")] = None,
    noise: Annotated[Literal["drop", "raw"] | None, typer.Option(help="raw keeps the images on noise lists.")] = None,
    allow_missing: Annotated[int | None, typer.Option(min=0, help="Most failures to enrol that are accepted.")] = None,
    allow_mixed_models: Annotated[
        bool, typer.Option("--allow-mixed-models", help="Compare stores of different models or preprocessing.")
    ] = False,
    allow_duplicates: Annotated[
        bool, typer.Option("--allow-duplicates", help="Keep images that have the embedding of a distractor.")
    ] = False,
    fail_if: Annotated[
        list[str], typer.Option(help="Exit with 3 if it is met, 4 if undecided: 'gap(rank1).high > 0.05'; repeatable.")
    ] = [],  # noqa: B006
    data: Annotated[str | None, typer.Option(help="For the report: description of the data.")] = None,
    consent: Annotated[str | None, typer.Option(help="For the report: legal basis of their use.")] = None,
    licence: Annotated[str | None, typer.Option(help="For the report: licence of the data.")] = None,
    model: Annotated[str | None, typer.Option(help="For the report: the model.")] = None,
    auditor: Annotated[str | None, typer.Option(help="For the report: who signs it.")] = None,
    note: Annotated[list[str], typer.Option(help="Remark at the head of the report; repeatable.")] = [],  # noqa: B006
    title: Annotated[str | None, typer.Option(help="Title of the report.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the report, new or empty.")] = None,
    overwrite: OverwriteOption = False,
    recipe: ConfigArgument = None,
) -> None:
    """Measure error rates by group at one threshold for all, and their disparities with intervals. Needs no torch."""
    from facelt.audit.run import run_audit
    from facelt.config.audit import AuditConfig
    from facelt.config.loading import load_config
    from facelt.config.yaml_file import parse_yaml
    from facelt.report.audit_schema import AuditReport
    from facelt.report.audit_terminal import print_audit
    from facelt.report.write import report_folder, write_report_files
    from facelt.utils.provenance import run_provenance
    from recordio_tools.progress import progress_bars

    def number(text: str) -> Any:
        return parse_yaml(text, "a number of the command line")

    options = {
        "embeddings": {
            **{"path": embeddings, "list": images, "algorithm": algorithm, "noises": noises},
            **{"items": items, "array": array},
        },
        "gallery": {
            **{"path": gallery, "list": gallery_list, "noises": gallery_noises},
            "algorithm": algorithm if gallery else None,
        },
        **{"scores": scores, "higher_is": higher_is},
        "training": {"record": training},
        "attributes": {
            **{"tables": attributes, "key": key, "actors": actors, "actresses": actresses},
            "absent": "failure" if absent_as_failures else None,
        },
        "by": [columns.split(",") for columns in by],
        "bins": _named_values(bins, "--bins", "age=18,30", lambda edges: list(map(number, edges.split(",")))),
        "min_identities": min_identities,
        "threshold": {**_named_values(threshold_at, "--threshold-at", "fmr=1e-3", number), "store": threshold_from},
        "shots": {"train": train, "threshold": shots_at},
        "against": {"path": against},
        "against_gallery": {"path": against_gallery},
        **{"kind": kind, "noise": noise, "allow_missing": allow_missing, "fail_if": fail_if},
        "allow_mixed_models": allow_mixed_models or None,
        "allow_duplicates": allow_duplicates or None,
        "provenance": {"data": data, "consent": consent, "licence": licence, "model": model, "auditor": auditor},
        **{"notes": note, "title": title, "out": out},
    }
    if recipe is not None:
        config = choose_config(config, recipe)
    settings = load_config(config, AuditConfig, set_, _given(options))
    with report_folder(AuditReport, settings.out, overwrite) as folder, progress_bars() as progress:
        result = run_audit(settings, progress)
        report = result.report.with_run(run_provenance("audit", settings.model_dump(mode="json"), result.inputs))
        write_report_files(report, folder)
    print_audit(report)
    typer.echo(f"report: {settings.out / 'report.html'}")
    states = {condition.state for condition in report.conditions}
    for condition in report.conditions:
        for reason in condition.reasons:
            typer.echo(f"{condition.state}: {reason}", err=True)
    if "fails" in states:
        raise typer.Exit(FAILED)
    if "undecided" in states:
        raise typer.Exit(UNDECIDED)


def _named_values(texts: list[str], option: str, example: str, parse: Callable[[str], Any]) -> dict[str, Any]:
    """Returns the values of NAME=VALUE texts by name. Raises UserError on another form."""
    values = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not name or not value:
            raise UserError(f"{option} {text}: expected NAME=VALUE, such as {example}")
        values[name] = parse(value)
    return values


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Returns the options that were given: without None, empty lists and empty mappings."""
    nested = {key: _given(value) if isinstance(value, dict) else value for key, value in options.items()}
    return {key: value for key, value in nested.items() if value not in (None, [], {})}
