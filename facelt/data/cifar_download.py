"""Fetching CIFAR where it was published."""

import tarfile
from pathlib import Path

from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity, download_and_extract_archive

from facelt.errors import UserError

_SETS = {10: CIFAR10, 100: CIFAR100}


def download_cifar(root: Path, classes: int) -> None:
    """Lays the published files below `root` unless they are there: torchvision's address, torchvision's MD5 sums.

    Raises UserError where the archive cannot be fetched or is another one.
    """
    files = _SETS[classes]
    parts = [*files.train_list, *files.test_list]
    if all(check_integrity(Path(root) / files.base_folder / name, md5) for name, md5 in parts):
        return
    try:
        download_and_extract_archive(files.url, str(root), filename=files.filename, md5=files.tgz_md5)
    except (OSError, RuntimeError, tarfile.TarError) as error:
        raise UserError(
            f"data.download: {files.url} cannot be laid below {root} ({' '.join(str(error).split())[:160]}); fetch it "
            "by other means and unpack it there"
        ) from None
