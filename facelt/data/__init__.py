"""From files to batches: decoding, transforms, datasets, samplers, the loader."""

from importlib import import_module

_DATASETS = {
    "record": ("facelt.data.record_dataset", "RecordDataset"),
    "cifar": ("facelt.data.cifar", "CifarDataset"),
    "list": ("facelt.data.list_dataset", "ListDataset"),
    "paths": ("facelt.data.list_dataset", "PathListDataset"),
    "folder": ("facelt.data.list_dataset", "FolderDataset"),
}


def __getattr__(name: str):
    """`DATASETS`, dataset classes by name, loaded on first use: `facelt.data.synthetic` needs no torch."""
    if name != "DATASETS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return {key: getattr(import_module(module), member) for key, (module, member) in _DATASETS.items()}
