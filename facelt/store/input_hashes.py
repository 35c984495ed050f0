"""Hashes of embedding stores and feature trees, as inputs of a report."""

import hashlib
import shlex
from collections.abc import Sequence
from pathlib import Path

from facelt.store.arrays import refuse_special_file
from facelt.store.feature_tree import feature_path, read_image_list, size_inside_root
from facelt.store.store import ITEMS_FILE, META_FILE, REACHABILITY_FILE
from facelt.utils.provenance import InputHash

_LIST_IMAGES = (
    "import json,sys; print(*dict.fromkeys(path for name in sys.argv[1:] "
    'for path in json.load(open(name))["path"]),sep="\\n")'
)
_LIST_LINES = r"sed 's/^[[:space:]]*//; s/[[:space:]]*$//; /^#/d; /^$/d'"


def store_inputs(path: Path, kinds: Sequence[str]) -> list[InputHash]:
    """Returns the hashes of a store's description, of its items, of the embeddings of `kinds`, and of reachability."""
    names = [META_FILE, ITEMS_FILE, *(f"{kind}.npy" for kind in kinds)]
    if (path / REACHABILITY_FILE).is_file():
        names.append(REACHABILITY_FILE)
    return [InputHash.of_file(path / name) for name in names]


def tree_input(root: Path, algorithm: str, lists: Sequence[Path]) -> InputHash:
    """Returns the hash of a tree's feature files, one after the other, in the order of the lists of their images.

    An image in several lists counts once, in the first; missing files are skipped. The lists are MegaFace's JSON, or
    one text. Raises UserError naming a list, a sparse file, or a link that leaves the root.
    """
    digest = hashlib.sha256()
    images = dict.fromkeys(image for path in lists for image in read_image_list(path))
    for image in images:
        path = feature_path(root, image, algorithm)
        if size_inside_root(path, root) is not None:
            refuse_special_file(path)
            digest.update(path.read_bytes())
    return InputHash(f"{root} (*_{algorithm}.bin)", digest.hexdigest(), _tree_command(root, algorithm, lists))


def _tree_command(root: Path, algorithm: str, lists: Sequence[Path]) -> str:
    names = " ".join(shlex.quote(str(path)) for path in lists)
    is_json = lists[0].read_text(encoding="utf-8").lstrip().startswith("{")
    listing = f"python3 -c {shlex.quote(_LIST_IMAGES)} {names}" if is_json else f"{_LIST_LINES} {names}"
    feature = f'{shlex.quote(f"{root}/")}"$image"{shlex.quote(f"_{algorithm}.bin")}'
    files = f"while IFS= read -r image; do printf '%s\\0' {feature}; done"
    return f"{listing} | {files} | xargs -0 cat 2>/dev/null | sha256sum"
