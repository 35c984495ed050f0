"""`facelt verify`: face verification on InsightFace's .bin sets and on lists of pairs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from facelt.config.base import EmbeddingKind
from facelt.errors import UserError
from facelt.utils.cli import print_notice, set_openmp_wait_policy


def verify(
    sets: Annotated[
        list[Path] | None,
        typer.Option(
            "--set",
            help="Pairs: InsightFace's .bin, a list of lines `path path 1` or `path path 0`, or LFW's pairs.txt. "
            "Repeat it for several sets.",
        ),
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Run folder, or a stage's folder in it.")] = None,
    embeddings: Annotated[
        Path | None,
        typer.Option(
            help="Instead of --checkpoint: .npz of `embeddings` [2P,D] and `issame` [P], or .npy with one --set."
        ),
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of a list's paths; by default that of the list.")] = None,
    kind: Annotated[EmbeddingKind, typer.Option(help="Kind of embedding.")] = "direct",
    flip: Annotated[bool, typer.Option(help="Average each image with its mirror image.")] = True,
    batch: Annotated[int, typer.Option(min=1, help="Batch size.")] = 128,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="Print one line of JSON instead of a table.")] = False,
) -> None:
    """Measure face verification: 10-fold accuracy as in arcface_torch, and TAR at FAR with confidence intervals."""
    settings = {name.rstrip("_"): value for name, value in locals().items()}
    if (embeddings is None) == (checkpoint is None):
        raise UserError("give either a model with --checkpoint or computed embeddings with --embeddings")
    if embeddings is not None and (kind != "direct" or not flip or root is not None):
        raise UserError("--kind, --no-flip, --root: only apply with --checkpoint")
    from facelt.identification.pair_verification import PAIR_LEVEL
    from facelt.report.schema import VerificationReport
    from facelt.report.verification import print_verification
    from facelt.utils.json_values import json_line
    from facelt.utils.provenance import InputHash, run_provenance

    sets = sets or []
    if embeddings is not None:
        source: dict[str, Any] = {"name": str(embeddings), "kind": None, "flip_averaged": None}
        results = [_verify_embeddings(embeddings, sets)]
        inputs = [InputHash.of_file(path) for path in (embeddings, *sets)]
    elif not sets:
        raise UserError("--set: give the pairs, a .bin file or a list")
    else:
        set_openmp_wait_policy(device)
        from facelt.cli.evaluate import checkpoint_inputs
        from facelt.distributed.launch import resolve_device
        from facelt.inference.model import describe_model, load_model

        print_notice(f"model: {describe_model(checkpoint)}")
        model = load_model(checkpoint, resolve_device(device))
        model.require_kind(kind)
        source = {"name": str(checkpoint), "weights_sha256": model.weights_sha256, "kind": kind, "flip_averaged": flip}
        results = list(_verify_model(model, sets, root, kind, flip, batch, workers))
        inputs = checkpoint_inputs([checkpoint], sets)
    report = VerificationReport.build({"source": source, "level": PAIR_LEVEL, "sets": results})
    report = report.with_run(run_provenance("verify", settings, inputs))
    if json:
        typer.echo(json_line(report.json_values()))
    else:
        print_verification(report)


def _verify_model(
    model: Any, sets: list[Path], root: Path | None, kind: str, flip: bool, batch: int, workers: int
) -> Iterator[dict[str, Any]]:
    from facelt.data.batch import BadImageTracker
    from facelt.inference.predict import Predictor
    from facelt.inference.verification import NO_BAD_IMAGES, embed_verification_set, open_verification_set

    predictor = Predictor.of(model, batch, workers, BadImageTracker(0, NO_BAD_IMAGES))
    # Open all sets before spending time on the first.
    for pair_set in [open_verification_set(path, model.config, root) for path in sets]:
        embedding_UD = embed_verification_set(predictor, pair_set, kind, flip=flip)
        yield _verify_set(pair_set.path, embedding_UD, pair_set.pairs, kind)


def _verify_embeddings(path: Path, sets: list[Path]) -> dict[str, Any]:
    from facelt.data.pairs import ImagePairs, read_pairs
    from facelt.store.arrays import read_pair_embeddings

    embedding_ND, same_P = read_pair_embeddings(path)
    if (len(sets), same_P is None) not in ((0, False), (1, True)):
        raise UserError("--set: give exactly one set with .npy embeddings, and none with a .npz that has `issame`")
    source = sets[0] if sets else path
    pairs = read_pairs(source) if sets else ImagePairs.of((row.tobytes() for row in embedding_ND), same_P)
    if len(embedding_ND) != 2 * len(pairs.same_P):
        raise UserError(
            f"{path}: {len(embedding_ND):,} embeddings for {len(pairs.same_P):,} pairs, expected two per pair"
        )
    return _verify_set(source, embedding_ND[pairs.first_U], pairs, "direct")


def _verify_set(path: Path, embedding_UD: Any, pairs: Any, kind: str) -> dict[str, Any]:
    from facelt.identification.pair_verification import verify_pairs
    from facelt.store.store import UNIT_KINDS

    try:
        result = verify_pairs(embedding_UD, pairs.left_P, pairs.right_P, pairs.same_P, unit=kind in UNIT_KINDS)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return {"name": path.stem, "path": str(path), **result.report()}
