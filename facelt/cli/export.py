"""`facelt export`: a trained model in a file that other tools load."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from facelt.errors import UserError
from facelt.utils.cli import set_openmp_wait_policy


def export(
    checkpoint: Annotated[Path, typer.Option(help="A run's folder, or a stage's folder in it.")],
    format_: Annotated[Literal["onnx", "safetensors"], typer.Option("--format", help="A graph, or weights alone.")],
    kind: Annotated[
        Literal["direct", "meta"],
        typer.Option(help="onnx: which embedding. meta has the memory in the graph and reachability as second output."),
    ] = "direct",
    mirror: Annotated[
        bool, typer.Option(help="onnx: average each image with its mirror image, as facelt embed does.")
    ] = True,
    out: Annotated[
        Path | None, typer.Option(help="The file to write; by default KIND.onnx or network.safetensors in the stage.")
    ] = None,
) -> None:
    """Write a model as ONNX, which insightface loads, or its network as safetensors with a JSON card beside it.

    The graph reads `data` [N,3,H,W], RGB, (x - 127.5) / 127.5. Before it gets its name it is compared with the model.
    """
    if format_ == "safetensors" and (kind != "direct" or not mirror):
        raise UserError("--kind, --no-mirror: only of an ONNX file; weights are the network's, however they are used")
    if out is not None and out.suffix != f".{format_}":
        raise UserError(f"--out {out}: must end in .{format_}")
    set_openmp_wait_policy("cpu")
    import torch

    from facelt.inference.model import find_model_folder, load_model

    folder = find_model_folder(checkpoint)
    if format_ == "safetensors":
        from facelt.export.safetensors import export_network

        path = out or folder / "export" / "network.safetensors"
        card = export_network(load_model(folder, torch.device("cpu")), path)
        typer.echo(f"exported: {path} ({_megabytes(path)}) and {card.name}")
        return
    from facelt.export.onnx import export_onnx, is_insightface_compatible

    path = out or folder / "export" / f"{kind}.onnx"
    model = load_model(folder, torch.device("cpu"))
    found = export_onnx(model, path, kind, mirror)
    typer.echo(
        f"exported: {path} ({kind}, {_megabytes(path)}); beside the model its largest difference is "
        f"{found.difference:.1e}, the smallest cosine {found.cosine:.7f}"
    )
    if kind == "direct" and not is_insightface_compatible(model.config.data.image_size):
        height, width = model.config.data.image_size
        typer.echo(f"note: insightface takes no recognition model of {height}x{width}; it wants 112x112", err=True)


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"
