"""`facelt audit`: how often people are mistaken for others or not known again, by group, and how sure that is."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from facelt.errors import UserError

# The exit code where a condition of --fail-if holds.
FAILED = 3


def audit(
    config: Annotated[Path | None, typer.Option(help="A YAML file; every option below is a key of it.")] = None,
    set_: Annotated[list[str], typer.Option("--set", help="Set any key: statistics.level=0.9.")] = [],  # noqa: B006
    embeddings: Annotated[Path | None, typer.Option(help="A store, or a tree of IMAGE_ALGORITHM.bin files.")] = None,
    images: Annotated[Path | None, typer.Option("--list", help="Which of its images; needed for a tree.")] = None,
    algorithm: Annotated[str | None, typer.Option(help="The suffix of a tree's files.")] = None,
    noises: Annotated[Path | None, typer.Option(help="Wrongly labelled images, to be left out.")] = None,
    gallery: Annotated[Path | None, typer.Option(help="Distractors to search among: a store or a tree.")] = None,
    gallery_list: Annotated[Path | None, typer.Option(help="Which of its images.")] = None,
    gallery_noises: Annotated[Path | None, typer.Option(help="Distractors to be left out.")] = None,
    scores: Annotated[Path | None, typer.Option(help="A CSV file id1,id2,score,label instead of embeddings.")] = None,
    training: Annotated[Path | None, typer.Option(help="A .rec to count, with identities.csv beside it.")] = None,
    attributes: Annotated[list[Path], typer.Option(help="A CSV file of attributes; may be repeated.")] = [],  # noqa: B006
    key: Annotated[str | None, typer.Option(help="Its column that says whose a row is.")] = None,
    actors: Annotated[Path | None, typer.Option(help="FaceScrub's list of actors.")] = None,
    actresses: Annotated[Path | None, typer.Option(help="FaceScrub's list of actresses.")] = None,
    by: Annotated[list[str], typer.Option(help="Group by a column, or several: gender,age. Repeat for more.")] = [],  # noqa: B006
    bins: Annotated[list[str], typer.Option(help="Bin a column of numbers: age=18,30,45,60.")] = [],  # noqa: B006
    min_identities: Annotated[int | None, typer.Option(min=2, help="Fewer make a group too small to compare.")] = None,
    threshold_at: Annotated[list[str], typer.Option(help="fmr=1e-3 and fpir=1e-2, or score=0.4.")] = [],  # noqa: B006
    threshold_from: Annotated[Path | None, typer.Option(help="A store to set the thresholds on.")] = None,
    train: Annotated[Path | None, typer.Option(help="A store of training embeddings, for shots.")] = None,
    shots_at: Annotated[float | None, typer.Option(help="Similarity above which one counts as a shot.")] = None,
    against: Annotated[Path | None, typer.Option(help="Another model's embeddings of the same images.")] = None,
    against_gallery: Annotated[Path | None, typer.Option(help="And of the same distractors.")] = None,
    kind: Annotated[Literal["direct", "meta", "meta_unit"] | None, typer.Option(help="Which embedding.")] = None,
    noise: Annotated[Literal["drop", "raw"] | None, typer.Option(help="raw keeps what noise lists name.")] = None,
    allow_missing: Annotated[int | None, typer.Option(min=0, help="Count up to this many failures to enrol.")] = None,
    fail_if: Annotated[list[str], typer.Option(help="Exit with 3 if so: 'gap(rank1) > 0.05'.")] = [],  # noqa: B006
    data: Annotated[str | None, typer.Option(help="For the report: what the data are.")] = None,
    consent: Annotated[str | None, typer.Option(help="For the report: on what ground they are used.")] = None,
    licence: Annotated[str | None, typer.Option(help="For the report: under which terms.")] = None,
    model: Annotated[str | None, typer.Option(help="For the report: which model.")] = None,
    auditor: Annotated[str | None, typer.Option(help="For the report: who signs it.")] = None,
    note: Annotated[list[str], typer.Option(help="A remark at the head of the report.")] = [],  # noqa: B006
    title: Annotated[str | None, typer.Option(help="The report's title.")] = None,
    out: Annotated[Path | None, typer.Option(help="The report's folder.")] = None,
) -> None:
    """Error rates by group at one threshold for all, their disparities with intervals, and a report. Needs no torch."""
    given = {
        **{"embeddings.path": embeddings, "embeddings.list": images, "embeddings.algorithm": algorithm},
        **{"embeddings.noises": noises, "gallery.path": gallery, "gallery.list": gallery_list},
        **{"gallery.noises": gallery_noises, "gallery.algorithm": algorithm if gallery else None},
        **{"scores": scores, "training.record": training, "attributes.tables": attributes, "attributes.key": key},
        **{"attributes.actors": actors, "attributes.actresses": actresses, "by": [one.split(",") for one in by]},
        **{"min_identities": min_identities, "threshold.store": threshold_from, "shots.train": train},
        **{"shots.threshold": shots_at, "against.path": against, "against_gallery.path": against_gallery},
        **{"kind": kind, "noise": noise, "allow_missing": allow_missing, "fail_if": fail_if, "notes": note},
        **{"provenance.data": data, "provenance.consent": consent, "provenance.licence": licence},
        **{"provenance.model": model, "provenance.auditor": auditor, "title": title, "out": out},
        **{f"bins.{name}": values.split(",") for name, values in (_parted(one, "--bins") for one in bins)},
        **{f"threshold.{name}": value for name, value in (_parted(one, "--threshold-at") for one in threshold_at)},
    }
    _run(config, [*set_, *(_override(name, value) for name, value in given.items() if value not in (None, []))])


def _run(config: Path | None, overrides: list[str]) -> None:
    from facelt.audit.run import run_audit as audit_with
    from facelt.config.audit import AuditConfig
    from facelt.config.loading import load_config
    from facelt.report.audit_terminal import print_audit
    from facelt.report.write import write_report
    from recordio_tools.progress import progress_bars

    settings = load_config(config, AuditConfig, overrides)
    with progress_bars() as progress:
        report = audit_with(settings, progress)
    page = write_report(report, settings.out)
    print_audit(report)
    typer.echo(f"report: {page}")
    reasons = [reason for condition in report.conditions for reason in condition.reasons]
    for reason in reasons:
        typer.echo(f"failed: {reason}", err=True)
    if reasons:
        raise typer.Exit(FAILED)
    if undecided := [condition.undecided for condition in report.conditions if condition.undecided]:
        raise UserError(undecided[0])


def _parted(text: str, option: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name or not value:
        example = "age=18,30" if option == "--bins" else "fmr=1e-3"
        raise UserError(f"{option} {text}: expected NAME=VALUE, such as {example}")
    return name, value


def _override(name: str, value: object) -> str:
    """An option as one more setting of the configuration, its value as JSON, which is YAML too."""
    return f"{name}={json.dumps(value, default=str, ensure_ascii=False)}"
