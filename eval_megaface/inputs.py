"""Hashes of the files of a MegaFace evaluation: lists, attributes, and each model's embeddings."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from eval_megaface.config import MegafaceConfig, ModelFiles
from eval_megaface.suite import find_distractor_lists
from facelt.store.input_hashes import store_inputs, tree_input
from facelt.store.store import META_FILE, read_meta
from facelt.utils.provenance import InputHash


def evaluation_inputs(config: MegafaceConfig, suite_sha256: Mapping[str, str]) -> list[InputHash]:
    """Returns the hashes of all files that an evaluation reads; `suite_sha256` has those of the suite, by name.

    Raises UserError naming a file of a model that cannot be read.
    """
    suite = config.suite
    lists = list(find_distractor_lists(suite.megaface_lists, suite.root, suite.sizes, suite.sets).values())
    optional = [suite.facescrub_noises, suite.megaface_noises, suite.actors, suite.actresses]
    optional.append(suite.attributes.path if suite.attributes else None)
    probe_list = suite.root / suite.facescrub_list
    paths = {str(suite.facescrub_list): probe_list} | {path.name: path for path in lists}
    paths |= {str(path): suite.root / path for path in optional if path}
    hashes = [InputHash.of_file(path, suite_sha256[name]) for name, path in paths.items()]
    for files in config.models.values():
        hashes += _model_inputs(files, probe_list, lists, config)
    return hashes


def _model_inputs(
    files: ModelFiles, probe_list: Path, lists: list[Path], config: MegafaceConfig
) -> Iterator[InputHash]:
    for path, image_lists in ((files.probes, [probe_list]), (files.distractors, lists)):
        if (path / META_FILE).is_file():
            kinds = read_meta(path / META_FILE)["kinds"]
            yield from store_inputs(path, [kind for kind in kinds if config.kinds == "all" or kind in config.kinds])
        else:
            yield tree_input(path, files.algorithm, image_lists)
    if files.train is not None:
        yield from store_inputs(files.train, ["direct"])
    if files.training_identities is not None:
        yield InputHash.of_file(files.training_identities)
