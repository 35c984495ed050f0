"""CIFAR download, from a local server instead of the published address."""

import hashlib
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from torchvision.datasets import CIFAR10

from facelt.data.cifar import download_cifar, open_cifar
from facelt.errors import UserError
from tests.data.cifar_folder import write_cifar


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        """Logs nothing."""


@pytest.fixture
def address(tmp_path, monkeypatch):
    """Serves the files of the test's folder; returns the URL."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Silent, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def published(tmp_path, monkeypatch, address) -> dict:
    """Publishes a small archive at torchvision's address of CIFAR-10; returns its contents."""
    source = tmp_path / "source"
    splits = write_cifar(source, 10, per_class=2)
    archive = tmp_path / "published.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(source / CIFAR10.base_folder, CIFAR10.base_folder)
    monkeypatch.setattr(CIFAR10, "url", f"{address}/{archive.name}")
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))
    for part in ("train_list", "test_list"):
        names = [name for name, _ in getattr(CIFAR10, part)]
        monkeypatch.setattr(CIFAR10, part, [[name, md5(source / CIFAR10.base_folder / name)] for name in names])
    return splits


def test_what_is_missing_is_fetched_and_what_is_there_is_not(published, tmp_path, monkeypatch):
    root = tmp_path / "data" / "cifar"
    download_cifar(root, 10)
    for split, (_, label_N) in published.items():
        assert open_cifar(root, 10, split).labels.tolist() == label_N.tolist()
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:1/nowhere")
    download_cifar(root, 10)
    # A damaged file is extracted again from the archive in the same folder.
    (root / CIFAR10.base_folder / "test_batch").write_bytes(b"damaged")
    download_cifar(root, 10)
    assert len(open_cifar(root, 10, "test")) == 10


def test_another_archive_is_refused_and_not_unpacked(published, tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR10, "tgz_md5", "0" * 32)
    with pytest.raises(UserError, match=r"^data\.download: http://.* cannot be downloaded to .*corrupted") as caught:
        download_cifar(tmp_path / "data", 10)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data" / CIFAR10.base_folder).exists()


def test_an_address_that_does_not_answer_is_named(published, address, tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR10, "url", f"{address}/absent.tar.gz")
    with pytest.raises(UserError, match=r"^data\.download: http://.*absent\.tar\.gz cannot be downloaded to"):
        download_cifar(tmp_path / "data", 10)
