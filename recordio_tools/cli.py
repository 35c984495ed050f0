"""The commands of `python -m recordio_tools`."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from recordio_tools.atomic_io import atomic_folder
from recordio_tools.errors import RecordIOError, sanitize
from recordio_tools.face_set import FaceRecord
from recordio_tools.image_header import image_format, image_size
from recordio_tools.progress import ProgressFn, no_progress, progress_bars
from recordio_tools.reader import record_path
from recordio_tools.selection import describe_counts

recordio_app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Read, verify, sample, pack and unpack RecordIO face sets without MXNet.",
)

_Source = Annotated[Path, typer.Argument(help="A .rec file, or a folder with a train.rec.")]
_Json = Annotated[bool, typer.Option("--json", help="Print a JSON object instead of text.")]
_Out = Annotated[Path, typer.Option(help="Output folder, new or empty.")]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the whole output folder once all is written.")]
_Cache = Annotated[
    Path | None,
    typer.Option(file_okay=False, help="Folder of caches; default: the variable FACELT_CACHE, or the file's folder."),
]
_Seed = Annotated[int, typer.Option(help="Random seed; it selects the same images on any machine.")]
_Images = Annotated[int | None, typer.Option(help="Number of images to draw (proportional).")]
_Identities = Annotated[int | None, typer.Option(help="Number of identities to keep; default: those drawn.")]
_Power = Annotated[
    float | None, typer.Option(help="Exponent of an identity's weight, its number of images; default 1 (proportional).")
]
_Alpha = Annotated[float | None, typer.Option(help="Shape of the distribution; default 6 (pareto).")]
_Imbalance = Annotated[
    float | None, typer.Option(help="Ratio of the largest to the smallest count; default 100 (exponential, step).")
]
_Maximum = Annotated[
    int | None,
    typer.Option("--max", help="Largest count; default 1280 (pareto), or that of the source (exponential, step)."),
]
_Minimum = Annotated[int | None, typer.Option("--min", help="Smallest count; default 5 (pareto).")]


class ProfileName(StrEnum):
    """Shapes of a long-tailed selection."""

    proportional = "proportional"
    pareto = "pareto"
    exponential = "exponential"
    step = "step"


def show(values: dict, as_json: bool) -> None:
    """Prints values as a JSON object, or one line each."""
    if as_json:
        typer.echo(json.dumps(values, indent=2))
        return
    for name, value in values.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {_number(entry)}" for key, entry in value.items())
        elif isinstance(value, list):
            value = " x ".join(map(str, value))
        typer.echo(f"{name.replace('_', ' '):<22} {sanitize(_number(value))}")


def _number(value: object) -> str:
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


@recordio_app.command("info")
def info_command(source: _Source, cache: _Cache = None, as_json: _Json = False) -> None:
    """Summarize a record file: records, images, identities, layout."""
    with progress_bars(not as_json) as progress:
        summary = summarize(record_path(source), progress, cache)
    show(summary, as_json)


def summarize(path: Path, progress: ProgressFn = no_progress, cache: Path | None = None) -> dict:
    """Returns records, images, identities, spread and layout of a file. Raises RecordIOError if it cannot be read."""
    with FaceRecord(path, progress=progress, cache=cache) as faces:
        reader = faces.reader
        summary = {
            "file": str(path),
            "bytes": len(reader.view),
            "records": len(reader),
            **describe_counts(faces.counts),
            "declared_size": list(faces.image_size) if faces.image_size else None,
            "record_0": "absent" if 0 not in reader else "image" if 0 in faces.image_keys else "identity range",
            "identity_records": len(faces.identity_keys),
            "index": "idx" if reader.index_path.is_file() else "from a scan",
            "labels_from": faces.label_source,
            "label_width": reader.label_width,
        }
        if len(faces):
            summary["first_image"] = _describe_image(faces.read(int(faces.image_keys[0])).payload)
            summary["mean_record_bytes"] = round(float(np.mean(np.diff(reader.offsets, append=len(reader.view)))), 1)
        return summary


def _describe_image(payload: memoryview) -> str:
    try:
        height, width = image_size(payload)
    except RecordIOError as error:
        return str(error)
    return f"{image_format(payload)}, {height} x {width}, {len(payload)} bytes"


@recordio_app.command("verify")
def verify_command(
    source: _Source,
    decode: Annotated[bool, typer.Option(help="Also decode every image.")] = True,
    cache: _Cache = None,
    as_json: _Json = False,
) -> None:
    """Check every record; list damaged ones by key, offset and reason, and exit with code 1 if there are any."""
    from recordio_tools.verify import verify_record_file

    with progress_bars(not as_json) as progress:
        report = verify_record_file(record_path(source), decode_images=decode, progress=progress, cache=cache)
    if as_json:
        issues = [issue._asdict() for issue in report.issues]
        typer.echo(json.dumps({**report._asdict(), "issues": issues}, indent=2))
    else:
        for issue in report.issues:
            key = "without a key" if issue.key is None else f"key {issue.key}"
            record = f"{report.path}: record {key} at offset {issue.offset}: "
            typer.echo(sanitize(issue.reason if issue.offset is None else record + issue.reason))
        typer.echo(f"{report.records:,} records, {report.images:,} images, {len(report.issues):,} issues")
    if report.issues:
        raise typer.Exit(1)


@recordio_app.command("sample")
def sample_command(
    source: _Source,
    out: _Out,
    seed: _Seed = 0,
    images: _Images = None,
    identities: _Identities = None,
    profile: Annotated[ProfileName, typer.Option(help="Shape of the selection.")] = ProfileName.proportional,
    power: _Power = None,
    alpha: _Alpha = None,
    imbalance: _Imbalance = None,
    maximum: _Maximum = None,
    minimum: _Minimum = None,
    pack: Annotated[bool, typer.Option("--pack", help="Also write the images: train.rec, .idx and property.")] = False,
    overwrite: _Overwrite = False,
    cache: _Cache = None,
    as_json: _Json = False,
) -> None:
    """Draw a long-tailed selection: a manifest, statistics, a plot and, with --pack, a record file of its images."""
    from recordio_tools.long_tail import draw_selection
    from recordio_tools.selection import pack_selection, write_selection

    options = {"images": images, "power": power, "alpha": alpha, "imbalance": imbalance, "max": maximum, "min": minimum}
    path = record_path(source)
    with (
        atomic_folder(out, overwrite, [path]) as folder,
        progress_bars(not as_json) as progress,
        FaceRecord(path, progress=progress, cache=cache) as faces,
    ):
        selection, profile_values = draw_selection(
            faces.image_keys, faces.labels, profile.value, seed, identities, options
        )
        if pack:
            pack_selection(faces, selection, folder, progress)
        statistics = write_selection(faces, selection, folder, profile_values)
    if as_json:
        show(statistics, as_json)
    else:
        shown = {name: values for name, values in statistics["selection"].items() if name != "empty_identities"}
        show(
            {"source": statistics["source"]["file"], "profile": profile_values, **shown, "written to": str(out)},
            as_json,
        )


@recordio_app.command("lists")
def lists_command(
    source: Annotated[
        Path, typer.Argument(help="A folder with one folder per class, or a list with `path label` on each line.")
    ],
    out: _Out,
    profile: Annotated[ProfileName, typer.Option(help="Shape of the training list.")],
    seed: _Seed = 0,
    validation: Annotated[int, typer.Option(min=0, help="Validation images of each class.")] = 0,
    test: Annotated[int, typer.Option(min=0, help="Test images of each class.")] = 0,
    images: _Images = None,
    identities: _Identities = None,
    power: _Power = None,
    alpha: _Alpha = None,
    imbalance: _Imbalance = None,
    maximum: _Maximum = None,
    minimum: _Minimum = None,
    overwrite: _Overwrite = False,
    as_json: _Json = False,
) -> None:
    """Write a long-tailed training list of image files, and disjoint validation and test lists."""
    from recordio_tools.lists import HeldOut, write_lists

    if not source.exists():
        raise RecordIOError(f"{source}: no such folder or list")
    options = {"images": images, "power": power, "alpha": alpha, "imbalance": imbalance, "max": maximum, "min": minimum}
    statistics = write_lists(
        source, out, profile.value, seed, HeldOut(validation, test), identities, options, overwrite
    )
    if as_json:
        show(statistics, as_json)
        return
    show({"profile": statistics["profile"]}, as_json)
    for split in ("source", "train", "validation", "test"):
        if split in statistics:
            show({split: statistics[split].pop("images"), **statistics[split]}, as_json)
    show({"written to": str(out)}, as_json)


@recordio_app.command("pack")
def pack_command(
    source: Annotated[Path, typer.Argument(help="A folder with one folder per identity, or a .lst file.")],
    out: _Out,
    root: Annotated[
        Path | None, typer.Option(help="Root folder of the paths in a list; default: the list's folder.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH: resize images of other sizes and store them as JPEG.")
    ] = None,
    overwrite: _Overwrite = False,
    as_json: _Json = False,
) -> None:
    """Pack images into a record file in InsightFace's layout."""
    from recordio_tools.pack import pack_images

    if not source.exists():
        raise RecordIOError(f"{source}: no such folder or list")
    with progress_bars(not as_json) as progress:
        summary = pack_images(source, out, root, parse_size(size), progress, overwrite)
    show({**summary, "written_to": str(out / "train.rec")}, as_json)


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Returns (height, width) from HEIGHTxWIDTH; raises RecordIOError for anything else."""
    if text is None:
        return None
    fields = text.lower().split("x")
    if len(fields) != 2 or not all(field.isdecimal() and 0 < int(field) <= 4096 for field in fields):
        raise RecordIOError(f"--size {text}: expected HEIGHTxWIDTH in pixels, such as 112x112")
    return int(fields[0]), int(fields[1])


@recordio_app.command("unpack")
def unpack_command(
    source: _Source, out: _Out, overwrite: _Overwrite = False, cache: _Cache = None, as_json: _Json = False
) -> None:
    """Write every image to LABEL/KEY.jpg, and a list for `pack`."""
    from recordio_tools.pack import unpack_images

    with progress_bars(not as_json) as progress:
        summary = unpack_images(record_path(source), out, progress, overwrite, cache)
    show({**summary, "written_to": str(out)}, as_json)
