"""Regions of the face: what each network of configs/faces_regions.yaml is worth alone, and the first ones together.

python -m benchmarks.regions --checkpoint runs/faces_regions/pooled --out FOLDER

Embeds the suites of faces_power_megaface.yaml and faces_small_megaface.yaml, splits the embeddings by region, and
compares all of them with that of the first region: FOLDER/faces_power/report, FOLDER/faces_small/report.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.face_training import SUITES
from benchmarks.second_stages import ROOT, compare_stores, embed_suite
from facelt.config.loading import read_layers
from facelt.inference.model import read_card
from facelt.store.store import EmbeddingStore
from facelt.store.writer import StoreWriter


def split_store(source: Path, out: Path, regions: slice, branches: int) -> None:
    """Writes the part of the embeddings that belongs to some of the regions, of unit length."""
    if (out / "meta.json").exists():
        return
    store = EmbeddingStore.open(source)
    feature_NKD = np.asarray(store.embedding("direct"), dtype=np.float32).reshape(len(store.keys), branches, -1)
    part_ND = feature_NKD[:, regions].reshape(len(feature_NKD), -1)
    part_ND = part_ND / np.linalg.norm(part_ND, axis=1, keepdims=True)
    meta = {"model": f"regions {regions.start + 1} to {regions.stop}"}
    writer = StoreWriter(out, store.keys, store.identities, {"direct": part_ND.shape[1]}, meta)
    writer.write(writer.rows_done, {"direct": part_ND[writer.rows_done :]})
    writer.finish()


def compare_regions(checkpoint: Path, out: Path, suite: str) -> None:
    """Compares the regions on a suite by the MegaFace protocol."""
    measure, folder = read_layers(ROOT / SUITES[suite]).values(), out / suite
    whole = embed_suite(checkpoint.parent, checkpoint.name, folder, measure, None)
    count = read_card(checkpoint / "card.json")[2].branches.count
    parts = {f"region_{number + 1}": slice(number, number + 1) for number in range(count)}
    parts |= {f"first_{number}": slice(0, number) for number in range(2, count + 1)}
    models: dict[str, dict[str, Any]] = {}
    for name, regions in parts.items():
        models[name] = {source: str(folder / name / source) for source in whole}
        for source, store in whole.items():
            split_store(Path(store), folder / name / source, regions, count)
    compare_stores(folder / "report", measure, models, "region_1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    for suite in SUITES:
        compare_regions(arguments.checkpoint.resolve(), arguments.out.resolve(), suite)


if __name__ == "__main__":
    main()
