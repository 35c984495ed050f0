"""`facelt export`: export of a trained model as ONNX or safetensors."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from facelt.errors import UserError
from facelt.utils.cli import print_notice, set_openmp_wait_policy
from facelt.utils.folder_lock import require_writable


def export(
    checkpoint: Annotated[Path, typer.Option(help="Run folder, or a stage's folder in it.")],
    format_: Annotated[Literal["onnx", "safetensors"], typer.Option("--format", help="A graph, or only weights.")],
    kind: Annotated[
        Literal["direct", "meta"],
        typer.Option(help="onnx: kind of embedding; meta includes the memory and has reachability as a second output."),
    ] = "direct",
    reachability: Annotated[
        bool,
        typer.Option(help="onnx, meta: the second output; insightface takes a graph without it, of one output."),
    ] = True,
    flip: Annotated[
        bool, typer.Option(help="onnx: average each image with its mirror image, as in facelt embed.")
    ] = True,
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write; by default export/KIND.onnx or export/network.safetensors in the stage's folder."
        ),
    ] = None,
) -> None:
    """Export a model as ONNX, which insightface loads, or its network as safetensors with a JSON card.

    The input of the graph is `data` [N,3,H,W], RGB, (x - 127.5) / 127.5. Its outputs are compared with the model's
    before the file is moved into place.
    """
    if format_ == "safetensors" and (kind != "direct" or not flip):
        raise UserError("--kind, --no-flip: only apply to ONNX; safetensors holds the weights of the network")
    if kind != "meta" and not reachability:
        raise UserError(
            "--no-reachability: only applies to --kind meta, whose graph has reachability as a second output"
        )
    if out is not None and out.suffix != f".{format_}":
        raise UserError(f"--out {out}: must end in .{format_}")
    set_openmp_wait_policy("cpu")
    import torch

    from facelt.inference.model import describe_model, find_model_folder, load_model

    print_notice(f"model: {describe_model(checkpoint)}")
    folder = find_model_folder(checkpoint)
    require_writable(folder / "export" if out is None else out.parent)
    if format_ == "safetensors":
        from facelt.export.safetensors import export_network

        path = out or folder / "export" / "network.safetensors"
        card = export_network(load_model(folder, torch.device("cpu")), path)
        typer.echo(f"exported: {path} ({_megabytes(path)}) and {card.name}")
        return
    from facelt.export.onnx import export_onnx, is_insightface_compatible

    path = out or folder / "export" / f"{kind}.onnx"
    model = load_model(folder, torch.device("cpu"))
    parity = export_onnx(model, path, kind, flip, reachability)
    typer.echo(
        f"exported: {path} ({kind}, {_megabytes(path)}); compared with the model: largest difference "
        f"{parity.difference:.1e}, smallest cosine {parity.cosine:.7f}"
    )
    if kind == "meta" and reachability:
        typer.echo("note: insightface takes graphs of one output only; for it add --no-reachability", err=True)
    elif not is_insightface_compatible(model.config.data.image_size):
        height, width = model.config.data.image_size
        typer.echo(
            f"note: insightface does not load recognition models of {height}x{width}; it expects 112x112", err=True
        )


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"
