"""`facelt verify`: whether pairs of images show one person, on InsightFace's .bin sets and on lists of pairs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from facelt.errors import UserError
from facelt.utils.cli import set_openmp_wait_policy


def verify(
    sets: Annotated[
        list[Path] | None,
        typer.Option(
            "--set",
            help="The pairs: InsightFace's .bin, a list of lines `path path 1` or `path path 0`, or LFW's pairs.txt. "
            "Repeat it for several.",
        ),
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="A run's folder, or a stage's folder in it.")] = None,
    embeddings: Annotated[
        Path | None,
        typer.Option(help="Instead of a model: .npz of `embeddings` [2P,D] and `issame` [P], or .npy for one --set."),
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Where a list's images lie; by default beside the list.")] = None,
    kind: Annotated[Literal["direct", "meta", "meta_unit"], typer.Option(help="Which embedding of it.")] = "direct",
    flip: Annotated[bool, typer.Option(help="Average each image with its mirror image.")] = True,
    batch: Annotated[int, typer.Option(min=1, help="Images that pass the network together.")] = 128,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode; 0 is this one.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="Print JSON, in a line, instead of a table.")] = False,
) -> None:
    """Do pairs of images show one person? 10-fold accuracy as arcface_torch computes it, and TAR at FAR with limits."""
    if (embeddings is None) == (checkpoint is None):
        raise UserError("name either a model with --checkpoint or embeddings made elsewhere with --embeddings")
    if embeddings is not None and (kind != "direct" or not flip or root is not None):
        raise UserError("--kind, --no-flip, --root: only with --checkpoint; --embeddings are taken as they are")
    from facelt.identification.pair_verification import PAIR_LEVEL
    from facelt.report.schema import VerificationReport
    from facelt.report.verification import print_verification
    from facelt.utils.json_values import json_line

    sets = sets or []
    if embeddings is not None:
        source: dict[str, Any] = {"name": str(embeddings), "kind": None, "flip_averaged": None}
        found = [_of_embeddings(embeddings, sets)]
    elif not sets:
        raise UserError("--set: name the pairs, a .bin file or a list")
    else:
        set_openmp_wait_policy(device)
        from facelt.distributed.launch import resolve_device
        from facelt.inference.model import load_model

        model = load_model(checkpoint, resolve_device(device))
        model.require_kind(kind)
        source = {"name": str(checkpoint), "weights_sha256": model.weights_sha256, "kind": kind, "flip_averaged": flip}
        found = list(_of_model(model, sets, root, kind, flip, batch, workers))
    report = VerificationReport.build({"source": source, "level": PAIR_LEVEL, "sets": found})
    if json:
        typer.echo(json_line(report.json_values()))
    else:
        print_verification(report)


def _of_model(
    model: Any, sets: list[Path], root: Path | None, kind: str, flip: bool, batch: int, workers: int
) -> Iterator[dict[str, Any]]:
    from facelt.data.batch import BadImageTracker
    from facelt.inference.predict import Predictor
    from facelt.inference.verification import NO_BAD_IMAGES, embed_verification_set, open_verification_set

    # All are opened before the first takes its time.
    for one in [open_verification_set(path, model.config, root) for path in sets]:
        predictor = Predictor.of(model, batch, workers, BadImageTracker(0, NO_BAD_IMAGES))
        yield _measured(one.path, embed_verification_set(predictor, one, kind, flip=flip), one.pairs, kind)


def _of_embeddings(path: Path, sets: list[Path]) -> dict[str, Any]:
    from facelt.data.pairs import ImagePairs, read_pairs
    from facelt.identification.pair_verification import read_pair_embeddings

    embedding_ND, same_P = read_pair_embeddings(path)
    if (len(sets), same_P is None) not in ((0, False), (1, True)):
        raise UserError("--set: .npy embeddings need the one set they are of, those of a .npz with `issame` need none")
    source = sets[0] if sets else path
    pairs = read_pairs(source) if sets else ImagePairs.of((row.tobytes() for row in embedding_ND), same_P)
    if len(embedding_ND) != 2 * len(pairs.same_P):
        raise UserError(f"{path}: {len(embedding_ND):,} embeddings for {len(pairs.same_P):,} pairs; a pair has two")
    return _measured(source, embedding_ND[pairs.first_U], pairs, "direct")


def _measured(path: Path, embedding_UD: Any, pairs: Any, kind: str) -> dict[str, Any]:
    from facelt.identification.pair_verification import verify_pairs
    from facelt.store.store import UNIT_KINDS

    answers = pairs.left_P, pairs.right_P, pairs.same_P
    try:
        found = verify_pairs(embedding_UD, *answers, unit=kind in UNIT_KINDS)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return {"name": path.stem, "path": str(path), **found.report()}
