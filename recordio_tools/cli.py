"""What a .rec holds, in figures.

A bar for long work, on the terminal's error stream, only where a person watches.

The commands: parse, call, print. What they do lies in the modules they call.
"""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from recordio_tools.errors import RecordIOError
from recordio_tools.face_set import FaceRecord
from recordio_tools.image_header import image_format, image_size
from recordio_tools.progress import ProgressFn, no_progress, progress_bars
from recordio_tools.selection import describe_counts


def info(path: Path, progress: ProgressFn = no_progress) -> dict:
    """Records, images, identities, spread and layout of a file. Raises RecordIOError for a file that cannot be read."""
    with FaceRecord(path, progress=progress) as faces:
        reader = faces.reader
        summary = {
            "file": str(path),
            "bytes": len(reader.view),
            "records": len(reader),
            **describe_counts(faces.counts),
            "declared_size": list(faces.image_size) if faces.image_size else None,
            "record_0": "absent" if 0 not in reader else "image" if 0 in faces.image_keys else "identity range",
            "identity_records": len(faces.identity_keys),
            "index": "idx" if reader.index_path.is_file() else "made by a scan",
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


app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help="RecordIO face sets without MXNet."
)

Source = Annotated[Path, typer.Argument(help="A .rec file, or a folder that holds train.rec.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Out = Annotated[Path, typer.Option(help="The folder to write.")]
Seed = Annotated[int, typer.Option(help="The same seed draws the same images on any machine.")]
Images = Annotated[int | None, typer.Option(help="Images to draw (proportional).")]
Identities = Annotated[int | None, typer.Option(help="Identities to keep; by default as many as are drawn.")]
Power = Annotated[float | None, typer.Option(help="Weight = images of the identity ^ power; 1 (proportional).")]
Alpha = Annotated[float | None, typer.Option(help="Shape of the distribution; 6 (pareto).")]
Imbalance = Annotated[float | None, typer.Option(help="Largest count / smallest; 100 (exponential, step).")]
Maximum = Annotated[
    int | None, typer.Option("--max", help="Largest count; 1280 (pareto), the source's largest (exponential, step).")
]
Minimum = Annotated[int | None, typer.Option("--min", help="Smallest count; 5 (pareto).")]


class Profile(StrEnum):
    """How the selection thins the source."""

    proportional = "proportional"
    pareto = "pareto"
    exponential = "exponential"
    step = "step"


def record_path(source: Path) -> Path:
    """The .rec a SOURCE argument means; raises RecordIOError where there is none."""
    path = source / "train.rec" if source.is_dir() else source
    if not path.is_file():
        raise RecordIOError(f"{path}: no such file; SOURCE is a .rec file or a folder that holds train.rec")
    return path


def show(values: dict, as_json: bool) -> None:
    """Print the outcome: one JSON object, or a line per entry."""
    if as_json:
        typer.echo(json.dumps(values, indent=2))
        return
    for name, value in values.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {_number(entry)}" for key, entry in value.items())
        elif isinstance(value, list):
            value = " x ".join(map(str, value))
        typer.echo(f"{name.replace('_', ' '):<22} {_number(value)}")


def _number(value: object) -> str:
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


@app.command("info")
def info_command(source: Source, as_json: Json = False) -> None:
    """Show what a file holds: records, images, identities, layout."""

    with progress_bars(not as_json) as progress:
        summary = info(record_path(source), progress)
    show(summary, as_json)


@app.command("verify")
def verify_command(
    source: Source,
    decode: Annotated[bool, typer.Option(help="Decode every image too.")] = True,
    as_json: Json = False,
) -> None:
    """Check every record; name each damaged one with key, offset and reason, and exit with 1 if there is any."""
    from recordio_tools.verify import verify

    with progress_bars(not as_json) as progress:
        report = verify(record_path(source), decode_images=decode, progress=progress)
    if as_json:
        damages = [damage._asdict() for damage in report.damages]
        typer.echo(json.dumps({**report._asdict(), "damages": damages}, indent=2))
    else:
        for damage in report.damages:
            key = "without a key" if damage.key is None else f"key {damage.key}"
            typer.echo(f"{report.path}: record {key} at offset {damage.offset}: {damage.reason}")
        typer.echo(f"{report.records:,} records, {report.images:,} images, {len(report.damages):,} findings")
    if report.damages:
        raise typer.Exit(1)


@app.command("sample")
def sample_command(
    source: Source,
    out: Out,
    seed: Seed = 0,
    images: Images = None,
    identities: Identities = None,
    profile: Annotated[Profile, typer.Option(help="The shape of the selection.")] = Profile.proportional,
    power: Power = None,
    alpha: Alpha = None,
    imbalance: Imbalance = None,
    maximum: Maximum = None,
    minimum: Minimum = None,
    pack: Annotated[
        bool, typer.Option("--pack", help="Write the images too, as train.rec, .idx and property.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Draw a long-tailed selection: a manifest, statistics, a drawing and, with --pack, a compact record file."""
    from recordio_tools.face_set import FaceRecord
    from recordio_tools.long_tail import draw
    from recordio_tools.selection import pack_selection, write_selection

    given = {"images": images, "power": power, "alpha": alpha, "imbalance": imbalance, "max": maximum, "min": minimum}
    with progress_bars(not as_json) as progress:
        faces = FaceRecord(record_path(source), progress=progress)
    with faces:
        selection, made = draw(faces.image_keys, faces.labels, profile.value, seed, identities, given)
        if pack:
            with progress_bars(not as_json) as progress:
                pack_selection(faces, selection, out, progress)
        statistics = write_selection(faces, selection, out, made)
    if as_json:
        show(statistics, as_json)
    else:
        shown = {name: values for name, values in statistics["selection"].items() if name != "empty_identities"}
        show({"source": statistics["source"]["file"], "profile": made, **shown, "written to": str(out)}, as_json)


@app.command("lists")
def lists_command(
    source: Annotated[
        Path, typer.Argument(help="A folder with one folder per class, or a list of `path label` lines.")
    ],
    out: Out,
    profile: Annotated[Profile, typer.Option(help="The shape of the training list.")],
    seed: Seed = 0,
    validation: Annotated[int, typer.Option(min=0, help="Images of each class for validation.")] = 0,
    test: Annotated[int, typer.Option(min=0, help="Images of each class for test.")] = 0,
    images: Images = None,
    identities: Identities = None,
    power: Power = None,
    alpha: Alpha = None,
    imbalance: Imbalance = None,
    maximum: Maximum = None,
    minimum: Minimum = None,
    as_json: Json = False,
) -> None:
    """Write a long-tailed training list of images in files, and lists for validation and test that it leaves alone."""
    from recordio_tools.lists import HeldOut, write_lists

    if not source.exists():
        raise RecordIOError(f"{source}: no such folder or list")
    given = {"images": images, "power": power, "alpha": alpha, "imbalance": imbalance, "max": maximum, "min": minimum}
    statistics = write_lists(source, out, profile.value, seed, HeldOut(validation, test), identities, given)
    if as_json:
        show(statistics, as_json)
        return
    show({"profile": statistics["profile"]}, as_json)
    for split in ("source", "train", "validation", "test"):
        if split in statistics:
            show({split: statistics[split].pop("images"), **statistics[split]}, as_json)
    show({"written to": str(out)}, as_json)


@app.command("pack")
def pack_command(
    source: Annotated[Path, typer.Argument(help="A folder with one folder per identity, or a .lst file.")],
    out: Out,
    root: Annotated[
        Path | None, typer.Option(help="The folder that a list's paths start from; default: the list's.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH: resize images of another size, stored as JPEG.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Pack images into a record file in InsightFace's layout."""
    from recordio_tools.pack import pack

    if not source.exists():
        raise RecordIOError(f"{source}: no such folder or list")
    with progress_bars(not as_json) as progress:
        summary = pack(source, out, root, parse_size(size), progress)
    show({**summary, "written_to": str(out / "train.rec")}, as_json)


def parse_size(text: str | None) -> tuple[int, int] | None:
    """(height, width) from HEIGHTxWIDTH; raises RecordIOError for anything else."""
    if text is None:
        return None
    fields = text.lower().split("x")
    if len(fields) != 2 or not all(field.isdecimal() and 0 < int(field) <= 4096 for field in fields):
        raise RecordIOError(f"--size {text}: give HEIGHTxWIDTH in pixels, such as 112x112")
    return int(fields[0]), int(fields[1])


@app.command("unpack")
def unpack_command(source: Source, out: Out, as_json: Json = False) -> None:
    """Write every image as LABEL/KEY.jpg, and a list that `pack` reads."""
    from recordio_tools.pack import unpack

    with progress_bars(not as_json) as progress:
        summary = unpack(record_path(source), out, progress)
    show({**summary, "written_to": str(out)}, as_json)
